#!/bin/sh
# Creates the secrets that the units load: passwords, and the URLs of PostgreSQL and RabbitMQ with them. Existing files are
# kept, so it can be run again. Run as root: sh deploy/systemd/secrets.sh [FOLDER [POSTGRES [RABBITMQ]]]
# FOLDER is /etc/taskherd; the others are HOST:PORT, and by default on this machine.
set -eu
folder=${1:-/etc/taskherd} postgres=${2:-127.0.0.1:5432} rabbitmq=${3:-127.0.0.1:5672}
umask 077
mkdir -p "$folder" && cd "$folder"
mkdir -p postgres rabbitmq migrator worker api runner operator
random() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$1" ] || printf '%s\n' "$2" >"$1"; }
make secret-key "$(random)"
for role in migrator worker api; do
    make "postgres/$role" "$(random)"
    make "$role/database-url" "postgresql://taskherd_$role:$(cat "postgres/$role")@$postgres/taskherd"
    printf "ALTER ROLE taskherd_%s PASSWORD '%s';\n" "$role" "$(cat "postgres/$role")"
done >postgres/passwords.sql
for user in worker api operator runner; do
    make "rabbitmq/$user" "$(random)"
    make "$user/amqp-url" "amqp://taskherd-$user:$(cat "rabbitmq/$user")@$rabbitmq/"
done
