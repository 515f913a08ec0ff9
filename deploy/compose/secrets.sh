#!/bin/sh
# Creates the secrets that deploy/compose.yaml mounts as files. Existing ones are kept, so it can be run again.
# Other users of this machine cannot open the folder. The files in it are readable, for the containers' users, except
# runner_amqp_url: the runner is root, and its agents are other users in the same container.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets && chmod 700 secrets && cd secrets
umask 022
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$1" ] || printf '%s\n' "$2" >"$1"; }
make postgres_password "$(random 24)"
make database_url "postgresql://taskherd:$(cat postgres_password)@postgres:5432/taskherd"
make rabbitmq_password "$(random 24)"
make rabbitmq.conf "default_user = taskherd
default_pass = $(cat rabbitmq_password)"
make amqp_url "amqp://taskherd:$(cat rabbitmq_password)@rabbitmq:5672/"
make runner_amqp_url "$(cat amqp_url)"
chmod 600 runner_amqp_url
make secret_key "$(random 32)"
make grafana_password "$(random 16)"
