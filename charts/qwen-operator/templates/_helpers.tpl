{{/* Name of every object of the release. */}}
{{- define "qwen-operator.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "qwen-operator.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "qwen-operator.name" .) }}
{{- end }}

{{- define "qwen-operator.selector" -}}
app.kubernetes.io/name: qwen-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qwen-operator.labels" -}}
{{ include "qwen-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Whether this release serves custom.metrics.k8s.io: an API of the whole cluster. */}}
{{- define "qwen-operator.metricsApi" -}}
{{- if and .Values.metricsApi.enabled (not .Values.watchNamespace) }}yes{{ end }}
{{- end }}

{{/* Reference of an image: arguments are registry, repository, tag. */}}
{{- define "qwen-operator.image" -}}
{{- $registry := .registry | trimSuffix "/" -}}
{{ if $registry }}{{ $registry }}/{{ end }}{{ .repository }}:{{ .tag }}
{{- end }}

{{/* Whether the release has a ServiceMonitor: as the value says, or else as the cluster has its definition. */}}
{{- define "qwen-operator.monitored" -}}
{{- $wanted := .Values.serviceMonitor.enabled }}
{{- if ternary (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor") $wanted (kindIs "invalid" $wanted) }}yes{{ end }}
{{- end }}

{{/* The same of alerts. Without a ServiceMonitor they would fire for want of series, so that must be asked for. */}}
{{- define "qwen-operator.alerting" -}}
{{- $wanted := .Values.prometheusRule.enabled }}
{{- $served := and (include "qwen-operator.monitored" .) (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PrometheusRule") }}
{{- if ternary $served $wanted (kindIs "invalid" $wanted) }}yes{{ end }}
{{- end }}
