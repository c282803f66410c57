"""The koopcast service: gRPC for trainers, HTTP for people, Koopman operators underneath.

Rooms, and what each may know (arrows point downwards only)::

    __main__, service, embedding      a process: settings, start, drain
    grpc_*, http_*                    decode, call, encode
    jobs, job, leases, uploads        lifecycle, leases, memory budget, the rules of segments and steps
    engine, held_window               the only code that touches the device
    koopman, koopcast.window          pure operators; the ring of snapshots
"""
