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
