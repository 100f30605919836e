// Package policies holds the policies that come with Thole: examples to copy, of which
// one is the default. They are data; package compiler gives them a meaning. Each file is
// also an input of tests, so that what a reader copies is what was tried.
package policies

import "embed"

// Default is the set that is active until another is given: same-labels.yaml.
//
//go:embed same-labels.yaml
var Default []byte

// Files are all examples, by the names of their files.
//
//go:embed *.yaml
var Files embed.FS
