#!/usr/bin/env bash
# Does what the image and compose.yaml do, without a container engine: the image's own build steps in a clean folder,
# then the service with TLS and a token, its health check, and the example trainer.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
server=
finish() {
    if [[ -n $server ]]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT

# What COPY brings into the builder, no more.
mkdir "$work/build"
git -C "$root" ls-files -z --cached --others --exclude-standard -- LICENSE README.md pyproject.toml requirements.lock client server docker |
    tar -C "$root" --null --files-from=- -cf - | tar -C "$work/build" -xf -
cd "$work/build"
echo 'check: the environment'
export PIP_QUIET=2
sh docker/install.sh dependencies "$work/koopcast" "${VARIANT:-cpu}" "${TORCH_INDEX:-}"
sh docker/install.sh project "$work/koopcast"
du -sh "$work/koopcast" | sed "s|\s.*| in the environment|"

cd "$work" # nothing of the source is importable from here
cp build/docker/*.py .
rm -rf build
PATH=$work/koopcast/bin:$PATH
koopcast version
echo 'check: without TLS and a token the service stays off the network'
status=0
koopcast serve --listen 0.0.0.0:50051 --http off 2>refusal || status=$?
[[ $status -eq 2 ]] || { echo "check: exit status $status, not 2" >&2; exit 1; }
cat refusal

echo 'check: with them it serves'
python make_credentials.py service trainer koopcast localhost 127.0.0.1
python make_credentials.py service trainer # the second time it changes nothing
ports=$(python -c '
import socket
pair = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in pair))')
read -r grpc http <<<"$ports"
koopcast serve --listen="0.0.0.0:$grpc" --http="0.0.0.0:$http" --device=cpu --tls-cert=service/server.pem \
    --tls-key=service/server.key --token-file=service/tokens --memory-limit=2GiB >log 2>&1 &
server=$!
for _ in $(seq 60); do
    if python healthcheck.py "$http" >health; then break; fi
    kill -0 "$server" || { cat log >&2; exit 1; }
    sleep 0.5
done
cat health
python healthcheck.py "$http"
KOOPCAST_TARGET=localhost:$grpc KOOPCAST_CA=trainer/ca.pem KOOPCAST_TOKEN_FILE=trainer/token python trainer_example.py

echo 'check: it stops when it is told to'
kill -TERM "$server"
wait "$server"
server=
if python healthcheck.py "$http" >health; then
    echo 'check: the health check does not notice that the service is gone' >&2
    exit 1
fi
echo 'check: passed'
