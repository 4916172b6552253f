"""attach() and DepthPlugin: depth beside a host's own outputs."""
