"""What ComfyUI lends: server, folders, models, jobs, routes, sockets."""
