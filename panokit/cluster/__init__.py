"""Many panoramas on Ray: actors that make pictures, each of its own or several together."""
