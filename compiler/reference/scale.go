package reference

import (
	"fmt"
	"strings"

	"thole/compiler"
	"thole/compiler/policy"
)

// Scale returns what benchmarks compile: workloads of that many classes, and policies for
// these (ScalePolicies).
func Scale(workloads, classes, policies int) compiler.Input {
	var in compiler.Input
	for i := range workloads {
		c := i % classes
		in.Workloads = append(in.Workloads, policy.Workload{
			Name: fmt.Sprintf("w%05d", i), Kind: policy.KindContainer,
			Labels: policy.Labels{"app": fmt.Sprintf("app%03d", c), "env": []string{"prod", "dev"}[c%2],
				"team": fmt.Sprintf("t%02d", c%20)},
			Cgroup: policy.Cgroup{Path: fmt.Sprintf("docker/%064x", i), ID: uint64(100_000 + i)},
		})
	}
	docs, err := policy.Parse(Files(ScalePolicies(classes, policies)))
	if err != nil {
		panic("the policies of a benchmark: " + err.Error())
	}
	in.Policies = docs.Policies
	return in
}

// Files divides documents into files, since a file is bounded (docs/POLICY.md).
func Files(documents string) []policy.File {
	const size = 500_000
	var files []policy.File
	for documents != "" {
		end := len(documents)
		if end > size {
			if at := strings.Index(documents[size:], "---\n"); at >= 0 {
				end = size + at
			}
		}
		files = append(files, policy.File{Name: "scale.yaml", Data: []byte(documents[:end])})
		documents = documents[end:]
	}
	return files
}

// ScalePolicies returns that many policies, each of which isolates one of that many classes
// and admits another, from one network and on one port. No class reaches itself, as is usual.
func ScalePolicies(classes, policies int) string {
	var text strings.Builder
	for i := range policies {
		c, round := i%classes, i/classes
		fmt.Fprintf(&text, `---
apiVersion: thole/v1
kind: Policy
metadata: {name: p%04d}
spec:
  selector: {matchLabels: {app: app%03d}}
  ingress:
  - from: [{workloads: {matchLabels: {app: app%03d}}}, {cidr: 10.%d.0.0/16}]
    ports: ["%d/tcp"]
  egress:
  - to: [{workloads: {matchLabels: {app: app%03d}}}, {cidr: 10.%d.%d.0/24}]
    ports: ["%d/tcp"]
`, i, c, (c+1+round)%classes, i%200, 1000+i%100, (c+2*classes-1-round)%classes, i%200, i%250, 1000+i%100)
	}
	return text.String()
}
