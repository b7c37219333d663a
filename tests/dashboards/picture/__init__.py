"""Pictures of the dashboards without Grafana: their panels, drawn from their own queries on Prometheus."""
