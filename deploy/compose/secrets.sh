#!/bin/sh
# Creates the secrets that deploy/compose.yaml mounts as files. Existing ones are kept, so it can be run again.
# Other users of this machine cannot open the folder. The files in it are readable, for the containers' users, except
# the URLs of runners: they are root, and their agents are other users in the same container.
#
# With arguments it also makes users of further runners, each with its pool and the names of the runners that use it:
#   sh deploy/compose/secrets.sh runner-gpu=gpu,gpu-1
# They are kept in secrets/runners, where a line can be changed or removed before the next run. RabbitMQ only adds the users that are
# defined: of a runner whose line was removed, a run prints the command that deletes its user.
set -eu
for runner; do
    printf '%s\n' "$runner" | grep -Eqx 'runner-[a-z0-9-]+=[a-z0-9-]+(,[a-z0-9-]+)*' ||
        { echo "secrets.sh: expected runner-NAME=POOL,RUNNER,… instead of $runner" >&2; exit 1; }
done
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
user api "$own" "taskherd\\\\.(claims|commands|reports)|$own" "taskherd\\\\.(dead|wakeups)|$own"
user operator "" "taskherd\\\\.(claims|commands|reports)" "taskherd\\\\.dead"
make runners runner=default,runner # the one of compose.yaml
for runner; do
    { grep -v "^${runner%%=*}=" runners || true; printf '%s\n' "$runner"; } >runners.new && mv runners.new runners
done
while IFS== read -r name targets; do
    user "$name" "" "taskherd\\\\.(claims|reports)" "taskherd\\\\.work\\\\.($(printf %s "$targets" | tr , '|'))"
    chmod 600 "${name}_amqp_url" "${name}_amqp_cluster_url"
done <runners
printf '%s\n' '{"vhosts": [{"name": "/"}], "users": ['"$users"'], "permissions": ['"$permissions"']}' >rabbitmq.json
# The management API is for commands in the container, not for agents.
printf '%s\n' 'load_definitions = /etc/rabbitmq/taskherd.json' 'management.tcp.ip = 127.0.0.1' >rabbitmq.conf
for file in rabbitmq_runner*_password; do
    name=${file#rabbitmq_} name=${name%_password}
    grep -q "^$name=" runners || [ ! -e "$file" ] || cat <<END
# $name has no line in secrets/runners, but RabbitMQ accepts its user until this has run:
docker compose -f deploy/compose.yaml exec rabbitmq rabbitmqctl delete_user taskherd-$name && rm deploy/compose/secrets/$file
END
done
