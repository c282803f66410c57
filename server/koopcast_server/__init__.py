"""The koopcast service: gRPC for trainers, HTTP for people, Koopman operators underneath.

Rooms, and what each may know (arrows point downwards only)::

    __main__, service, embedding      a process: settings, start, drain
    demo, plots                       what needs the extra demo: they use the public client only
    grpc_*, http_*                    decode, call, encode
    jobs, job, leases, uploads,       lifecycle, leases, memory budget, the rules of segments and steps
      gram_rows, row_intake, steps
    engine, held_window, held_grams,  the only code that touches the device
      answering, solving, gram_store,
      window_shape
    telling                           users' words to the operators' numbers and back
    koopman, koopcast.window          pure operators; where snapshots live
"""
