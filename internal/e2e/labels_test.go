package e2e

import (
	"fmt"
	"testing"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest/probe"
)

// isolating is a policy that lets nobody connect to what it selects.
func isolating(name, selector string) string {
	return fmt.Sprintf("apiVersion: thole/v1\nkind: Policy\nmetadata: {name: %s}\n"+
		"spec: {selector: %s, ingress: []}\n", name, selector)
}

// settings is a Settings document.
func settings(spec string) string {
	return "apiVersion: thole/v1\nkind: Settings\nmetadata: {name: settings}\nspec: " + spec + "\n"
}

// TestWorkloadDocumentsOfContainers gives labels to containers that were started without any: by name, and by Compose
// service, also to those that start later.
func TestWorkloadDocumentsOfContainers(t *testing.T) {
	m, e := newDockerMachine(t)
	image := e.Image("box", nil)
	service := []string{"-l", "com.docker.compose.project=shop", "-l", "com.docker.compose.service=db"}
	e.Probe("plain", "--net=host", image).Listen("tcp", "127.0.0.1:80")
	e.Probe("shop-db-1", append(append([]string{"--net=host"}, service...), image)...).Listen("tcp", "127.0.0.1:81")
	free := probe.Start(m.In("elsewhere"), "free")
	binding := func(name, spec string) string {
		return fmt.Sprintf("apiVersion: thole/v1\nkind: Workload\nmetadata: {name: %s, labels: {app: %[1]s}}\n"+
			"spec: %s\n", name, spec)
	}
	byName, byService := binding("web", "{container: plain}"), binding("db", "{compose: {project: shop, service: db}}")
	must(t, m.apply(documents(byName, byService, isolating("p", "{}"))))
	found := m.untilWorkloads("plain", "shop-db-1")
	if app := found["plain"].Labels["app"] + found["shop-db-1"].Labels["app"]; app != "webdb" {
		t.Errorf("the labels are %+v", found)
	}
	m.ownerOf("127.0.0.1:80", 0, "app=web (document)")
	denied(t, "by name", free.TCP("127.0.0.1:80"))
	denied(t, "by service", free.TCP("127.0.0.1:81"))
	later := e.Probe("shop-db-2", append(append([]string{"--net=host"}, service...), image)...)
	later.Listen("tcp", "127.0.0.1:82")
	denied(t, "by service, later", free.TCP("127.0.0.1:82"))
	m.untilWorkloads("plain", "shop-db-1", "shop-db-2")
	must(t, m.apply(documents(byName, isolating("p", "{}"))))
	m.untilWorkloads("plain")
	allowed(t, "without its document", free.TCP("127.0.0.1:81"))

	// Two documents that name one container are a problem as long as both do.
	must(t, m.apply(documents(byName, byService, binding("second", "{container: shop-db-1}"), isolating("p", "{}"))))
	m.until("the problem", func(s api.Status) bool {
		return len(s.Problems) == 1 && s.Problems[0].Code == condition.BindingOverlap
	})
	e.Docker("rm", "-f", "shop-db-1")
	m.until("its end", func(s api.Status) bool { return len(s.Problems) == 0 && s.Workloads == 2 })
}
