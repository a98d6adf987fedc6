{{- /* Sidecars, tokens and certificates know the controller by this name. */ -}}
{{- define "mesh.name" -}}mesh-controller{{- end -}}

{{- define "mesh.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "mesh.selector" -}}
app.kubernetes.io/name: mesh-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mesh.labels" -}}
{{ include "mesh.selector" . }}
app.kubernetes.io/part-of: tower-mesh
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* Whose pods are never asked about: the controller's own have to start without it. */ -}}
{{- define "mesh.ordinaryNamespaces" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [{{ .Release.Namespace }}, kube-system, kube-public, kube-node-lease, local-path-storage]
{{- end -}}
