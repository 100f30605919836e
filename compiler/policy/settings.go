package policy

import (
	"slices"
	"strings"
)

// Settings are a Settings document: which labels count. A label that counts makes a container a workload, and
// sameLabels: all compares it. Any other label can still be selected.
type Settings struct {
	Include, Exclude []string // patterns of keys (Glob)
	TrustImages      []string // patterns of images, as thole/image names them: no label of these is doubtful
	Position         Position // of the document; zero: there is none
}

// Given reports whether there is a Settings document.
func (s *Settings) Given() bool { return s.Position != Position{} }

// Counts reports whether labels with this key count on this node: those that are included, and of the others those
// that neither are excluded nor belong to a tool.
func (s *Settings) Counts(key string) bool {
	switch {
	case strings.HasPrefix(key, daemonPrefix):
		return false
	case matchesAny(s.Include, key):
		return true
	default:
		return IsUserLabel(key) && !matchesAny(s.Exclude, key)
	}
}

// CountsAny reports whether some of the labels count.
func (s *Settings) CountsAny(labels Labels) bool {
	for key := range labels {
		if s.Counts(key) {
			return true
		}
	}
	return false
}

// trusts reports whether the labels of an image are those of a person who can be believed.
func (s *Settings) trusts(image string) bool { return image != "" && matchesAny(s.TrustImages, image) }

// daemonPrefix begins the keys that only the daemon sets.
const daemonPrefix = "thole/"

// toolKeys are patterns of the keys that tools set themselves (docs/POLICY.md, "Labels that count").
var toolKeys = []string{
	"com.docker.*", "desktop.docker.*", // Docker, Compose, Swarm, Docker Desktop
	"org.opencontainers.*", "org.label-schema.*", // the Open Container Initiative, and before it
	"io.kubernetes.*", "annotation.io.kubernetes.*", "io.cri-containerd.*", // Kubernetes
	"io.podman.*", "io.containers.*", "PODMAN_SYSTEMD_UNIT", // Podman
	"io.buildah.*", "io.buildpacks.*", // Buildah, Buildpacks
	"com.hashicorp.nomad.*", "com.amazonaws.ecs.*", "io.rancher.*", "io.balena.*", // Nomad, ECS, Rancher, balena
	"traefik.*", "caddy", "caddy.*", "caddy_*", // Traefik, caddy-docker-proxy
	"com.github.nginx-proxy.*", "com.github.jrcs.letsencrypt_nginx_proxy_companion.*", // nginx-proxy, acme-companion
	"com.centurylinklabs.watchtower", "com.centurylinklabs.watchtower.*", "diun.*", "wud.*", // watchers of images
	"io.portainer.*", "homepage.*", "net.unraid.docker.*", "coolify.*", "com.dokku.*", // Portainer, dashboards, Dokku
	"com.gitlab.gitlab-runner.*", "org.testcontainers", "org.testcontainers.*", // GitLab Runner, Testcontainers
	"devcontainer.*", "dev.containers.*", "vsch.*", // Development Containers, Visual Studio Code
	"ofelia.*", "autoheal", "autoheal.*", "sablier.*", "docker-volume-backup.*", // what runs and restarts containers
	"prometheus.io/*", "com.datadoghq.*", "co.elastic.*", // Prometheus, Datadog, Elastic
}

// IsUserLabel reports whether labels with this key are a person's: neither a tool's nor the daemon's. This is the same
// on all nodes, whatever their Settings are: only such labels are sent to other nodes.
func IsUserLabel(key string) bool {
	return !strings.HasPrefix(key, daemonPrefix) && !matchesAny(toolKeys, key)
}

func matchesAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return Glob(pattern, s) })
}

// Glob reports whether s matches a pattern in which * stands for any bytes and ? for one. No other byte has a meaning
// of its own: systemd's names have backslashes in them.
func Glob(pattern, s string) bool {
	p, n := 0, 0
	star, resume := -1, 0 // the last *, and where in s to go on after it
	for n < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[n]):
			p++
			n++
		case star >= 0: // let the last * take one byte more
			resume++
			p, n = star+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
