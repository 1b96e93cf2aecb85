#!/usr/bin/env bash
# An MLflow server for a team on this machine: PostgreSQL for runs and the registry, artifacts
# through the server. Runs until it is ended by Ctrl-C or SIGTERM, and then ends both.
#
#   deploy/mlflow_server.sh DIR [PORT] [HOST]     (DIR keeps everything; 5000; 127.0.0.1)
#
# PostgreSQL listens on a socket in DIR alone, which is its owner's; nobody else reaches it.
# Environment: WORKERS of the server (4).
set -euo pipefail

dir=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-5000}
host=${3:-127.0.0.1}
python=${PYTHON:-python}

find_bin() { find /usr/lib/postgresql -name initdb -printf '%h\n' 2>/dev/null | sort -V | tail -1; }
bin=$(find_bin)
if [ -z "$bin" ]; then
    echo "installing PostgreSQL" >&2
    apt-get install -y --no-install-recommends postgresql >&2
    bin=$(find_bin)
fi
"$python" -c 'import psycopg2' 2>/dev/null || {
    echo "error: $python has no psycopg2: pip install psycopg2-binary" >&2
    exit 1
}

# PostgreSQL does not run as root.
as_owner=()
mkdir -p "$dir/postgres" "$dir/socket" "$dir/artifacts"
chmod 700 "$dir/postgres" "$dir/socket" "$dir/artifacts"
if [ "$(id -u)" = 0 ]; then
    as_owner=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    chown postgres "$dir/postgres" "$dir/socket"
fi

if [ ! -f "$dir/postgres/PG_VERSION" ]; then
    # "trust" trusts who can enter the socket's folder, which has mode 700.
    "${as_owner[@]}" "$bin/initdb" -D "$dir/postgres" -U mlflow -A trust -E UTF8 --locale=C >&2
fi
"${as_owner[@]}" "$bin/postgres" -D "$dir/postgres" -k "$dir/socket" -c listen_addresses= \
    -c max_connections=200 &
database=$!
server=
stop() {
    trap - TERM INT EXIT
    [ -z "$server" ] || { kill -TERM "$server" 2>/dev/null || true; wait "$server" || true; }
    kill -INT "$database" 2>/dev/null || true   # PostgreSQL's fast shutdown
    wait "$database" || true
}
trap 'stop; exit 143' TERM
trap 'stop; exit 130' INT
trap stop EXIT

for _ in $(seq 300); do
    "$bin/pg_isready" -q -h "$dir/socket" && break
    kill -0 "$database" || exit 1
    sleep 0.2
done
"$bin/psql" -h "$dir/socket" -U mlflow -d postgres -tAc \
    "select 1 from pg_database where datname = 'mlflow'" | grep -q 1 ||
    "$bin/createdb" -h "$dir/socket" -U mlflow mlflow

# Its job runners judge language models, and would outlive a server that is ended by a signal.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true "$python" -m mlflow server --host "$host" --port "$port" \
    --workers "${WORKERS:-4}" \
    --backend-store-uri "postgresql+psycopg2://mlflow@/mlflow?host=$dir/socket" \
    --artifacts-destination "$dir/artifacts" --serve-artifacts &
server=$!
wait "$server"
