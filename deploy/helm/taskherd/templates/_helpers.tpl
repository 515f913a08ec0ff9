{{/* Names, and the parts that all pods have in common. */}}
{{- define "taskherd.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/*
The workload's name, and the values of one pool of runners: those of `runner`, replaced by those of the pool. Without
pools there is one workload for the pool `default`.
*/}}
{{- define "taskherd.runnerName" -}}
{{- $name := printf "%s-runner%s" (include "taskherd.name" .root) (ternary (printf "-%s" .pool) "" (not (empty .pool))) -}}
{{- if gt (len $name) 52 }}{{ fail (printf "the name %s is longer than 52 characters, the most that a StatefulSet can have: shorten the release's name, nameOverride or the pool's name" $name) }}{{ end -}}
{{- $name -}}
{{- end -}}

{{- define "taskherd.selector" -}}
app.kubernetes.io/name: taskherd
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .process }}
{{- with .pool }}
taskherd.dev/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "taskherd.labels" -}}
{{ include "taskherd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "taskherd.image" -}}
{{- $image := .root.Values.image -}}
{{- $own := (.values | default (index .root.Values .process)).image | default dict -}}
{{- $repository := $own.repository | default $image.repository -}}
{{- $digest := ternary $own.digest $image.digest (not (empty $own.repository)) -}}
{{- $tag := ternary $own.tag $image.tag (not (empty $own.repository)) | default .root.Chart.AppVersion -}}
{{- if $digest }}{{ $repository }}@{{ $digest }}{{ else }}{{ $repository }}:{{ $tag }}{{ end -}}
{{- end -}}

{{/* A runner that runs agents as users of their own is root with few capabilities; everything else is not root and has none. */}}
{{- define "taskherd.podSecurity" -}}
{{- if (.values | default dict).agentUids }}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
{{- else }}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
{{- end }}
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "taskherd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- if (.values | default dict).sandboxes }}
procMount: Unmasked
seccompProfile: {type: Unconfined}
{{- end }}
{{- if (.values | default dict).agentUids }}
capabilities: {drop: [ALL], add: {{ .values.capabilities | toJson }}}
{{- else }}
capabilities: {drop: [ALL]}
{{- end }}
{{- end -}}

{{- define "taskherd.caEnvironment" -}}
{{- if or .Values.ca.secret .Values.ca.configMap }}
- {name: PGSSLROOTCERT, value: /etc/taskherd/ca/ca.crt}
{{- end }}
{{- end -}}

{{/* Secrets are mounted as files, so that no environment contains them. */}}
{{/* The RabbitMQ users of the API and of operators, as deploy/rabbitmq/users.py names them, unless `settings` has others. */}}
{{- define "taskherd.commandSenders" -}}
{{- $prefix := (.root | default .).Values.settings.AMQP_PREFIX | default "taskherd" -}}
COMMAND_SENDERS: {{ $prefix }}-api,{{ $prefix }}-operator
{{- end -}}

{{- define "taskherd.environment" -}}
{{- $values := .values | default (index .root.Values .process) -}}
{{- $own := ternary (include "taskherd.commandSenders" . | fromYaml) (dict) (eq .process "worker") -}}
{{- /* Not `merge`, to which 0, false and "" are no values. */ -}}
{{- $settings := mergeOverwrite (dict) $own .root.Values.settings ($values.settings | default dict) -}}
{{- if .pool }}{{ $settings = omit $settings "RUNNER_POOL" }}{{ end -}}
- {name: TASKHERD_OPS_PORT, value: {{ .ops | quote }}}
- {name: TASKHERD_REPORT_PARTITIONS, value: {{ .root.Values.worker.partitions | quote }}}
- {name: TASKHERD_GRACE, value: {{ printf "%ds" (int .root.Values.grace) }}}
- {name: TASKHERD_MIGRATE, value: never}
- {name: TASKHERD_AMQP_URL_FILE, value: /run/secrets/taskherd/amqp-url}
{{- if ne .process "runner" }}
- {name: TASKHERD_DATABASE_URL_FILE, value: /run/secrets/taskherd/database-url}
- {name: TASKHERD_SECRET_KEY_FILE, value: /run/secrets/taskherd/secret-key}
{{- if (index .root.Values.secrets .process).databaseReadUrl }}
- {name: TASKHERD_DATABASE_READ_URL_FILE, value: /run/secrets/taskherd/database-read-url}
{{- end }}
{{- else if not (hasKey $settings "AGENT_API_URL") }}
- name: TASKHERD_AGENT_API_URL
  value: http://{{ include "taskherd.name" .root }}-api:{{ .root.Values.api.service.port }}
{{- end }}
{{- include "taskherd.caEnvironment" .root }}
{{- with .pool }}
- {name: TASKHERD_RUNNER_POOL, value: {{ . | quote }}}
{{- end }}
{{- with $values.agentUids }}
- {name: TASKHERD_RUNNER_AGENT_UIDS, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := $settings }}
- {name: {{ printf "TASKHERD_%s" $name }}, value: {{ include "taskherd.text" $value | quote }}}
{{- end }}
{{- include "taskherd.extra" (dict "ctx" . "key" "extraEnv") }}
{{- end -}}

{{/* A value as text. Of a float, which numbers in values may be, `quote` alone makes 1.34217728e+08. */}}
{{- define "taskherd.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* The entries of a list that all pods have, then those of this process. `key` is the name of both lists. */}}
{{- define "taskherd.extra" -}}
{{- $values := .ctx.values | default (index .ctx.root.Values .ctx.process) -}}
{{- with concat (index .ctx.root.Values .key | default list) (index $values .key | default list) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "taskherd.envFrom" -}}
{{- with include "taskherd.extra" (dict "ctx" . "key" "envFrom") }}
envFrom: {{- . | indent 2 }}
{{- end }}
{{- end -}}

{{- define "taskherd.secretVolume" -}}
{{- $secret := (.values | default dict).secret | default (index .root.Values.secrets .process) -}}
- name: secrets
  secret:
    secretName: {{ $secret.name }}
    defaultMode: 0440
    items:
      {{- with $secret.databaseUrl }}
      - {key: {{ . }}, path: database-url}
      {{- end }}
      {{- with $secret.databaseReadUrl }}
      - {key: {{ . }}, path: database-read-url}
      {{- end }}
      {{- with $secret.amqpUrl }}
      - {key: {{ . }}, path: amqp-url}
      {{- end }}
      {{- with $secret.secretKey }}
      - {key: {{ . }}, path: secret-key}
      {{- end }}
{{- with .root.Values.ca.secret }}
- {name: ca, secret: {secretName: {{ . }}}}
{{- end }}
{{- with .root.Values.ca.configMap }}
- {name: ca, configMap: {name: {{ . }}}}
{{- end }}
{{- include "taskherd.extra" (dict "ctx" . "key" "extraVolumes") }}
{{- end -}}

{{- define "taskherd.secretMounts" -}}
- {name: secrets, mountPath: /run/secrets/taskherd, readOnly: true}
{{- if or .root.Values.ca.secret .root.Values.ca.configMap }}
- {name: ca, mountPath: /etc/taskherd/ca, readOnly: true}
{{- end }}
{{- include "taskherd.extra" (dict "ctx" . "key" "extraVolumeMounts") }}
{{- end -}}

{{/*
Liveness: the event loop responds, even if a dependency is unavailable. Readiness: the process can work. A process
whose database is unavailable is not restarted.
*/}}
{{- define "taskherd.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{- define "taskherd.scheduling" -}}
{{- $values := .values | default (index .root.Values .process) -}}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "taskherd.selector" . | nindent 8 }}
{{- end -}}
