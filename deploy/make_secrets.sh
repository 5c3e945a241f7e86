#!/usr/bin/env bash
# Makes secrets/ for the compose file: an authority, one certificate for all services of this host, and a token.
# For a trial on one host; a fleet brings its own authority and one certificate a service.
set -euo pipefail
cd "$(dirname "$0")"
[ ! -e secrets ] || { echo "secrets/ is there already: nothing done"; exit 0; }
umask 077
mkdir secrets
openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=tutelage authority" \
  -keyout secrets/ca.key -out secrets/ca.pem 2>/dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=tutelage" -keyout secrets/server.key -out secrets/server.csr 2>/dev/null
names="DNS:teacher,DNS:student-ada,DNS:student-ben,DNS:orchestrator,DNS:localhost,IP:127.0.0.1"
openssl x509 -req -in secrets/server.csr -CA secrets/ca.pem -CAkey secrets/ca.key -CAcreateserial -days 825 \
  -extfile <(printf 'subjectAltName=%s' "$names") -out secrets/server.pem 2>/dev/null
openssl rand -hex 32 >secrets/token
rm secrets/server.csr
# The services run as user 10001 of their image and read these.
chmod 644 secrets/ca.pem secrets/server.pem
chown 10001 secrets secrets/server.key secrets/token 2>/dev/null ||
  echo "make secrets/ readable for user 10001 of the containers (chown needs root)"
echo "wrote secrets/"
