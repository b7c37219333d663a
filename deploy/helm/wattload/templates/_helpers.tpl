{{- define "wattload.name" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "wattload.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wattload.labels" -}}
{{ include "wattload.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What no container of ours needs is taken from it. */}}
{{- define "wattload.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The nodes that have the vendor's GPUs. */}}
{{- define "wattload.meterNodes" -}}
{{- if not (kindIs "invalid" .Values.meter.nodeSelector) -}}
{{- .Values.meter.nodeSelector | toJson -}}
{{- else if eq .Values.gpu.vendor "amd" -}}
{"feature.node.kubernetes.io/amd-gpu":"true"}
{{- else -}}
{"nvidia.com/gpu.present":"true"}
{{- end -}}
{{- end }}
