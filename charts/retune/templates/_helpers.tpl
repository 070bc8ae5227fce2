{{/* A release may be called `3.1-tuning`, but a Service's name has no dots and begins with a letter. */}}
{{- define "retune.fullname" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "retune-%s" $name -}}
{{- else if not (contains "retune" $name) -}}
{{- $name = printf "%s-retune" $name -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of an object: (list $ "component"). */}}
{{- define "retune.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{ include "retune.selector" . }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels that never change, for selectors. Trials have `name: retune` too, but no instance. */}}
{{- define "retune.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: retune
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* One of the project's images: (list $ "train"). */}}
{{- define "retune.image" -}}
{{- $root := index . 0 -}}
{{- $images := $root.Values.images -}}
{{- with $images.registry }}{{ . | trimSuffix "/" }}/{{ end }}retune-{{ index . 1 }}:{{ $images.tag | default $root.Chart.AppVersion }}
{{- with index $images.digests (index . 1) }}@{{ . }}{{ end }}
{{- end -}}

{{- define "retune.pullSecrets" -}}
{{- range .Values.images.pullSecrets }}
- name: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The security context that Pod Security "restricted" requires. Without a user id the cluster assigns one, as OpenShift does. */}}
{{- define "retune.podSecurity" -}}
runAsNonRoot: true
{{- with . }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "retune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The Secrets with the storage's address and keys. If a key is in both, the later one wins. */}}
{{- define "retune.storageSecrets" -}}
- {{ include "retune.fullname" . }}-storage
{{- with .Values.storage.existingSecret }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "retune.storageEnv" -}}
{{- range include "retune.storageSecrets" . | fromYamlArray }}
- secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* The file with the certificates of `caBundle`, where a study's pods have it too; empty without. */}}
{{- define "retune.caFile" -}}
{{- if .Values.caBundle.configMap }}/etc/retune/ca/{{ .Values.caBundle.key }}{{ end -}}
{{- end -}}

{{/* The variables from which OpenSSL, requests, curl and boto3 read that file. */}}
{{- define "retune.caEnv" -}}
{{- with include "retune.caFile" . }}
{{- $file := . }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "CURL_CA_BUNDLE" "AWS_CA_BUNDLE" }}
- {name: {{ . }}, value: {{ $file | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "retune.caMount" -}}
{{- if .Values.caBundle.configMap }}
- {name: ca, mountPath: /etc/retune/ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "retune.caVolume" -}}
{{- with .Values.caBundle.configMap }}
- name: ca
  configMap: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* The Secret with the account of this chart's MLflow; empty where it has no login. */}}
{{- define "retune.loginSecret" -}}
{{- if and .Values.mlflow.enabled .Values.mlflow.login.enabled -}}
{{- .Values.mlflow.login.existingSecret | default (printf "%s-mlflow-login" (include "retune.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{/* All Secrets of steps and trials: the storage's, and MLflow's account. */}}
{{- define "retune.studySecrets" -}}
{{ include "retune.storageSecrets" . }}
{{- with include "retune.loginSecret" . }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "retune.studyEnv" -}}
{{- range include "retune.studySecrets" . | fromYamlArray }}
- secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* Without `cluster.local`, as not every cluster's domain is called; the pods' search list adds it. */}}
{{- define "retune.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "retune.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:{{ .Values.mlflow.service.port }}
{{- else -}}
{{- .Values.mlflow.externalUri -}}
{{- end -}}
{{- end -}}

{{- define "retune.mlflowImage" -}}
{{- .Values.mlflow.image | default (include "retune.image" (list . "train")) -}}
{{- end -}}

{{/* The environment with the database's address. The kubelet expands the password in it. */}}
{{- define "retune.databaseEnv" -}}
{{- if include "retune.ownDatabase" . -}}
{{- $name := printf "%s-postgresql" (include "retune.fullname" .) -}}
- name: DATABASE_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.postgresql.existingSecret | default $name | quote }}, key: {{ .Values.postgresql.key | quote }}}
- name: MLFLOW_BACKEND_STORE_URI
  value: postgresql+psycopg://mlflow:$(DATABASE_PASSWORD)@{{ $name }}:5432/mlflow
{{- else -}}
- name: MLFLOW_BACKEND_STORE_URI
  valueFrom:
    secretKeyRef: {name: {{ .Values.mlflow.database.existingSecret | quote }}, key: {{ .Values.mlflow.database.key | quote }}}
{{- end -}}
{{- end -}}

{{- define "retune.ownDatabase" -}}
{{- if and .Values.mlflow.enabled (not .Values.mlflow.database.existingSecret) }}yes{{ end -}}
{{- end -}}

{{/* Whether suggestion pods need a service account of this chart. Katib creates the pods, and pull secrets reach them only by an account. */}}
{{- define "retune.suggestionAccount" -}}
{{- if and .Values.katib.register.enabled .Values.images.pullSecrets }}{{ include "retune.fullname" . }}-suggestion{{ end -}}
{{- end -}}

{{/* A name as YAML's text: `2024` and `true` would be a number and a truth value. */}}
{{- define "retune.word" -}}
{{- regexMatch "^([0-9].*|true|false|yes|no|on|off|null)$" . | ternary (quote .) . -}}
{{- end -}}

{{/* Names as YAML's list. */}}
{{- define "retune.words" -}}
{{- $words := list -}}
{{- range . }}{{ $words = append $words (include "retune.word" .) }}{{ end -}}
[{{ join "," $words }}]
{{- end -}}

{{/* Overrides with the settings of this cluster, for scheduled studies and NOTES, so that study files need none of them. */}}
{{- define "retune.overrides" -}}
- engine.kind=katib
- cluster.namespace={{ include "retune.word" .Release.Namespace }}
- cluster.service_account={{ include "retune.word" .Values.study.serviceAccount.name }}
- cluster.images.train={{ include "retune.image" (list . "train") }}
- cluster.images.eval={{ include "retune.image" (list . "eval") }}
- cluster.secrets={{ include "retune.words" (include "retune.studySecrets" . | fromYamlArray) }}
{{- with .Values.images.pullSecrets }}
- cluster.pull_secrets={{ include "retune.words" . }}
{{- end }}
{{- $user := .Values.podSecurity.runAsUser | int64 }}
{{- if ne $user 10001 }}{{/* a study's default */}}
- cluster.run_as_user={{ $user | default "null" }}
{{- end }}
{{- with .Values.caBundle }}
{{- if .configMap }}
- {{ printf "cluster.ca_bundle={config_map: %q, key: %q}" .configMap .key | squote }}
{{- end }}
{{- end }}
{{- with .Values.kueue.queue }}
- cluster.queue={{ include "retune.word" . }}
{{- end }}
{{- if .Values.trainJob.enabled }}
- cluster.katib.trial=TrainJob
- cluster.katib.runtime={{ include "retune.word" .Values.trainJob.name }}
{{- if ne .Values.trainJob.gpuResource "nvidia.com/gpu" }}
- cluster.gpu_resource={{ .Values.trainJob.gpuResource }}
{{- end }}
{{- end }}
{{- with include "retune.mlflowUri" . }}
- tracking.uri={{ . }}
{{- end }}
- artifacts.uri={{ .Values.storage.uri }}
{{- end -}}

{{/* Scheduling of pods: nodeSelector, tolerations, affinity, priorityClassName … of a section of the values. */}}
{{- define "retune.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with index $ $key }}
{{ $key }}: {{- kindIs "string" . | ternary (printf " %q" .) (toYaml . | nindent 2) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Ports of a rule between pods: (list $ port …). In Istio's ambient mesh all traffic between pods arrives at port 15008. */}}
{{- define "retune.ports" -}}
{{- $root := first . -}}
{{- range rest . }}
- {port: {{ . }}, protocol: TCP}
{{- end }}
{{- if $root.Values.networkPolicy.istioAmbient }}
- {port: 15008, protocol: TCP}
{{- end }}
{{- end -}}

{{- define "retune.dnsEgress" -}}
- to:
    - namespaceSelector: {}
    {{- range .Values.networkPolicy.dns.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
    {{- if .Values.networkPolicy.istioAmbient }}
    - {port: 15008, protocol: TCP}
    {{- end }}
{{- end -}}

{{- define "retune.storageEgress" -}}
{{- with .Values.networkPolicy.storage -}}
- to:
    {{- range .cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
    {{- if .namespace }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .namespace | quote }}
    {{- else if not .cidrs }}
    - namespaceSelector: {}
    {{- end }}
  ports: {{- include "retune.ports" (prepend .ports $) | trim | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* In an ambient mesh the kubelet's probes come from this address. */}}
{{- define "retune.probesOfMesh" -}}
{{- if .Values.networkPolicy.istioAmbient -}}
- from:
    - ipBlock: {cidr: 169.254.7.127/32}
{{- end -}}
{{- end -}}

{{/* The Ingress and the HTTPRoute of a page, if its section of the values enables them: (list $ "section" name port "what browsers open"). */}}
{{- define "retune.routes" }}
{{- $root := index . 0 }}
{{- $section := index . 1 }}
{{- $name := index . 2 }}
{{- $port := index . 3 }}
{{- $words := index . 4 }}
{{- $values := index $root.Values $section }}
{{- with $values.ingress }}
{{- if .enabled }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ $name }}
  labels: {{- include "retune.labels" (list $root $section) | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  {{- with .tlsSecret }}
  tls: [{hosts: [{{ $values.ingress.host }}], secretName: {{ . | quote }}}]
  {{- end }}
  rules:
    - host: {{ required (printf "`%s.ingress.enabled` needs `%s.ingress.host`, the name by which browsers call %s" $section $section $words) .host }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service: {name: {{ $name }}, port: {name: http}}
{{- end }}
{{- end }}
{{- with $values.httpRoute }}
{{- if .enabled }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ $name }}
  labels: {{- include "retune.labels" (list $root $section) | nindent 4 }}
spec:
  {{- if not (and .parentRefs .hostnames) }}
  {{- fail (printf "`%s.httpRoute.enabled` needs `parentRefs`, the Gateways it belongs to, and `hostnames`, by which browsers call %s" $section $words) }}
  {{- end }}
  parentRefs: {{- toYaml .parentRefs | nindent 4 }}
  hostnames: {{- toYaml .hostnames | nindent 4 }}
  rules:
    - backendRefs: [{name: {{ $name }}, port: {{ $port }}}]
{{- end }}
{{- end }}
{{- end }}

{{/* The value of a quantity such as 500m or 1.5Gi, as a number. */}}
{{- define "retune.number" -}}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) -}}
{{- $factors := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- mulf (trimSuffix $unit (toString .) | float64) (get $factors $unit | float64) -}}
{{- end -}}

{{/* A container's resources: ("values' section" resources). The API server refuses a request above its limit, and a GPU without one. */}}
{{- define "retune.resources" -}}
{{- $section := index . 0 -}}
{{- $resources := index . 1 -}}
{{- range $name, $asked := $resources.requests -}}
{{- $limit := get ($resources.limits | default dict) $name -}}
{{- if and (not (kindIs "invalid" $limit)) (ne (toString $limit) "") -}}
{{- if gt (include "retune.number" $asked | float64) (include "retune.number" $limit | float64) -}}
{{- fail (printf "`%s.requests.%s` must not be above its limit, but got %v and %v; set both" $section $name $asked $limit) -}}
{{- end -}}
{{- else if contains "/" $name -}}
{{- fail (printf "`%s.requests.%s` needs the same under `limits`, as every resource of a device does" $section $name) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
