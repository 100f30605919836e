package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"thole/compiler/policy/strict"
)

var (
	workloadMetadataShape = strict.Shape{Keys: []string{"name", "namespace", "labels", "labelSources"}}
	workloadShape         = strict.Shape{
		Keys: []string{"unit", "user", "cgroup", "container", "compose", "address"},
		Instead: map[string]string{
			"labels": "they belong in metadata", "service": "it is unit: NAME.service",
			"uid": "it is user", "path": "it is cgroup", "ip": "it is address",
			"project": "it belongs in compose", "image": "it is container: NAME, or compose",
		},
	}
	composeShape = strict.Shape{Keys: []string{"project", "service"}}
)

// binding reads a Workload document.
func (d *decoder) binding(meta strict.Mapping, spec strict.Node) Binding {
	b := Binding{}
	b.Name, b.Position = d.name(meta)
	if n, ok := meta.Values["namespace"]; ok {
		b.Namespace = d.Checked(n, "a name", CheckName)
	}
	if n, ok := meta.Values["labelSources"]; ok {
		b.Sources = d.sources(n)
	}
	if n, ok := d.Need(meta, "labels", "labels: {app: web}"); ok {
		b.Labels = d.labels(n, "labels such as {app: web}", b.checkKey, b.checkValue)
	}
	for key := range b.Sources {
		if _, has := b.Labels[key]; !has {
			d.Fail(meta.Values["labelSources"].Pos, "metadata.labelSources names %s, which is none of metadata.labels"+
				"; allowed: keys of metadata.labels", strict.Quote(key))
		}
	}
	m := d.Mapping(spec, workloadShape)
	d.onlyOne(m, workloadShape.Keys...)
	d.bound(m, &b)
	return b
}

// sources reads who gave the labels of a workload that ran.
func (d *decoder) sources(n strict.Node) map[string]Source {
	sources := map[string]Source{}
	switch {
	case !d.inventory:
		d.Fail(n.Pos, "%s says who gave the labels of a workload that ran; allowed: in inventories only (thole apply "+
			"--inventory)", n.Path)
	case n.Kind != strict.KindMapping:
		d.Wrong(n, "sources such as {app: person}")
	}
	for _, f := range n.Fields {
		word, _ := d.OneOf(f.Value, "person", "image", "tool", "document", "grant", "daemon")
		sources[f.Key] = Source(word)
	}
	return sources
}

// checkKey accepts the keys of a workload's labels: where it is said who gave one, all that a running one may have.
func (b *Binding) checkKey(key string) error {
	source, marked := b.Sources[key]
	switch daemons := strings.HasPrefix(key, daemonPrefix); {
	case !marked, source == SourceDocument, source == SourceGrant:
		return CheckUserLabelKey(key)
	case daemons != (source == SourceDaemon):
		return fmt.Errorf("the source of %s is %s; allowed: daemon for keys that begin with thole/, and no others",
			strict.Quote(key), source)
	case source == SourceTool && IsUserLabel(key), source == SourcePerson && !IsUserLabel(key):
		return fmt.Errorf("the source of %s is %s; allowed: tool for keys that tools set, and no others",
			strict.Quote(key), source)
	case key == "", len(key) > MaxLabelText:
		return fmt.Errorf("a label key of %d bytes; allowed: 1 to %d", len(key), MaxLabelText)
	}
	return nil
}

// checkValue accepts their values.
func (b *Binding) checkValue(key, value string) error {
	switch source, marked := b.Sources[key]; {
	case !marked, source == SourceDocument, source == SourceGrant:
		return checkLabelValue(key, value)
	case value != UnusableValue && !IsLabelText(value):
		return fmt.Errorf("the label value %s; allowed: printable text, at most %d bytes", strict.Quote(value),
			MaxLabelText)
	}
	return nil
}

// bound reads what the labels are given to.
func (d *decoder) bound(m strict.Mapping, b *Binding) {
	if n, ok := m.Values["unit"]; ok {
		b.Unit = d.Checked(n, "a unit such as nginx.service", checkUnit)
	}
	if n, ok := m.Values["user"]; ok {
		b.User = d.account(n)
	}
	if n, ok := m.Values["cgroup"]; ok {
		b.Cgroup = d.Checked(n, "a path such as system.slice/nginx.service", checkCgroup)
	}
	if n, ok := m.Values["container"]; ok {
		b.Container = d.Checked(n, "a container's name", checkContainer)
	}
	if n, ok := m.Values["compose"]; ok {
		b.Compose = d.compose(n)
	}
	if n, ok := m.Values["address"]; ok {
		b.Address = strict.Parsed(d.Decoder, n, "an address such as 10.0.0.1", parseAddress)
	}
}

// compose reads the name of a Compose service.
func (d *decoder) compose(n strict.Node) (c Compose) {
	m := d.Mapping(n, composeShape)
	if n, ok := d.Need(m, "project", "project: shop"); ok {
		c.Project = d.Checked(n, "a project's name", checkCompose)
	}
	if n, ok := d.Need(m, "service", "service: db"); ok {
		c.Service = d.Checked(n, "a service's name", checkCompose)
	}
	return c
}

// composeName is what Compose accepts as the name of a service; those of projects are a part of it.
var composeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

func checkCompose(s string) error {
	if !composeName.MatchString(s) {
		return fmt.Errorf("invalid name of Compose %s: must be letters, digits, _ . -", strict.Quote(s))
	}
	return nil
}

// unitName are the characters of systemd's unit_name_is_valid, and the types of units that have a cgroup. A unitPattern
// names several instances of a template.
var (
	unitName    = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(service|scope|slice|socket|mount|swap)$`)
	unitPattern = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+@[A-Za-z0-9:_.\\@*?-]+\.(service|socket|mount|swap)$`)
)

// IsPattern reports whether a unit or a cgroup of a Workload document names several: * and ? stand for characters.
func IsPattern(s string) bool { return strings.ContainsAny(s, "*?") }

func checkUnit(s string) error {
	switch {
	case len(s) > 255:
		return fmt.Errorf("a unit name of %d bytes; allowed: 255", len(s))
	case unitName.MatchString(s) && strings.Contains(s, "@."):
		return fmt.Errorf("%s is a template; allowed: one of its instances, NAME@INSTANCE, or several, such as %s",
			strict.Quote(s), strict.Quote(strings.Replace(s, "@.", "@*.", 1)))
	case unitName.MatchString(s), unitPattern.MatchString(s):
		return nil
	case IsPattern(s):
		return fmt.Errorf("invalid pattern %s: must be instances of a template, such as worker@*.service, with * or "+
			"? after the @", strict.Quote(s))
	case !strings.Contains(s, ".") && unitName.MatchString(s+".service"):
		return fmt.Errorf("%s has no type (did you mean %s?); allowed: a unit such as nginx.service", strict.Quote(s),
			strict.Quote(s+".service"))
	default:
		return fmt.Errorf("invalid unit %s: must be a unit of type service, scope, slice, socket, "+
			"mount or swap", strict.Quote(s))
	}
}

// checkCgroup accepts paths as Cgroup.Path has them, with * and ? for any characters
// of one component.
func checkCgroup(s string) error {
	const allowed = "; allowed: a path below the root of the cgroups, such as system.slice/nginx*.service"
	parts := strings.Split(s, "/")
	switch {
	case s == "":
		return errors.New("no path" + allowed)
	case len(s) > 4095:
		return fmt.Errorf("a path of %d bytes; allowed: 4095", len(s))
	case strings.HasPrefix(s, "/sys/fs/cgroup/"):
		return fmt.Errorf("%s begins with the mount point"+allowed, strict.Quote(s))
	case s[0] == '/':
		return fmt.Errorf("%s begins with /"+allowed, strict.Quote(s))
	case strings.Contains(s, "**"):
		return fmt.Errorf("** in %s"+allowed+", with * within one component", strict.Quote(s))
	case slices.Contains(parts, ""), slices.Contains(parts, "."), slices.Contains(parts, ".."):
		return fmt.Errorf("an empty component, . or .. in %s"+allowed, strict.Quote(s))
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("a control character in %s"+allowed, strict.Quote(s))
	}
	return nil
}

// containerName is what Docker accepts, or a container's id.
var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

func checkContainer(s string) error {
	if !containerName.MatchString(s) {
		return fmt.Errorf("invalid container name %s: must be letters, digits, _ . -", strict.Quote(s))
	}
	return nil
}

// parseAddress reads the address of a workload elsewhere.
func parseAddress(s string) (netip.Addr, error) {
	const allowed = ": must be an address such as 10.0.0.1 or fd00::1"
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return a, fmt.Errorf("%s is a network"+allowed, strict.Quote(s))
	case err != nil, a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("invalid address %s"+allowed, strict.Quote(s))
	case a.Is4In6():
		return a, fmt.Errorf("%s is IPv4 in IPv6; allowed: %s", s, a.Unmap())
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast():
		return a, fmt.Errorf("invalid address of a workload %s"+allowed, s)
	}
	return a, nil
}
