#!/bin/sh
# Creates the secrets that deploy/compose.yaml mounts as files. Existing ones are kept, so it can be run again.
# Other users of this machine cannot open the folder. The files in it are readable, for the containers' users, except
# the URLs of the runner: it is root, and its agents are other users in the same container.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets && chmod 700 secrets && cd secrets
umask 022
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$1" ] || printf '%s\n' "$2" >"$1"; }
make postgres_password "$(random 24)"
make database_url "postgresql://taskherd:$(cat postgres_password)@postgres:5432/taskherd"
make postgres_superuser_password "$(random 24)" # compose.cluster.yaml
make pgbouncer_url "postgresql://taskherd:$(cat postgres_password)@pgbouncer:6432/taskherd?pgbouncer=transaction"
make leader_url "postgresql://taskherd:$(cat postgres_password)@haproxy:5432/taskherd"
make rabbitmq_password "$(random 24)"
make secret_key "$(random 32)"
make grafana_password "$(random 16)"

# RabbitMQ: an administrator `taskherd`, and a user for each process and for operators with the rights of
# deploy/rabbitmq/users.py. RabbitMQ imports them at each start.
users='{"name": "taskherd", "password": "'"$(cat rabbitmq_password)"'", "tags": ["administrator"]}'
permissions='{"user": "taskherd", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}'
user() { # NAME CONFIGURE WRITE READ
    make "rabbitmq_$1_password" "$(random 24)"
    login="taskherd-$1:$(cat "rabbitmq_$1_password")"
    printf '%s\n' "amqp://$login@rabbitmq:5672/" >"$1_amqp_url"
    printf '%s\n' "amqp://$login@rabbitmq:5672,rabbitmq2:5672,rabbitmq3:5672/" >"$1_amqp_cluster_url" # compose.cluster.yaml
    users="$users, "'{"name": "taskherd-'"$1"'", "password": "'"$(cat "rabbitmq_$1_password")"'", "tags": []}'
    permissions="$permissions, "'{"user": "taskherd-'"$1"'", "vhost": "/", "configure": "'"^($2)\$"'", "write": "'"^($3)\$"'", "read": "'"^($4)\$"'"}'
}
own='amq\\.gen-.*'
user worker "taskherd\\\\..*" "taskherd\\\\..*|amq\\\\.default" "taskherd\\\\..*"
user api "$own" "taskherd\\\\.(commands|reports)|$own" "taskherd\\\\.wakeups|$own"
user operator "" "taskherd\\\\.(claims|commands|reports)" "taskherd\\\\.dead"
user runner "" "taskherd\\\\.(claims|reports)" "taskherd\\\\.work\\\\.(default|runner)"
printf '%s\n' '{"vhosts": [{"name": "/"}], "users": ['"$users"'], "permissions": ['"$permissions"']}' >rabbitmq.json
printf '%s\n' 'load_definitions = /etc/rabbitmq/taskherd.json' >rabbitmq.conf
chmod 600 runner_amqp_url runner_amqp_cluster_url
