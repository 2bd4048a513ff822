#!/usr/bin/env bash
# Makes the certificates of this folder anew.
set -euo pipefail
cd "$(dirname "$0")"
new_key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt; }
authority_key=$(mktemp)
trap 'rm -f "$authority_key"' EXIT
new_key >"$authority_key"
openssl req -x509 -new -key "$authority_key" -days 36500 -subj "/CN=Lampyris tests" -out authority.pem \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
new_key >server.key
openssl req -new -key server.key -subj "/CN=localhost" |
    openssl x509 -req -CA authority.pem -CAkey "$authority_key" -days 36500 -out server.pem -set_serial 1 -extfile <(
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n'
    )
