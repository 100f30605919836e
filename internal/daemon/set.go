package daemon

import (
	"errors"
	"slices"

	"thole/compiler"
)

// A policySet is a valid set of documents and the files that it was read from.
type policySet struct {
	source string // SourceDefault, …
	files  []compiler.File
	docs   compiler.Documents
}

// parseSet reads files as one set. No files at all are an error: such a set opens
// everything, and is more likely a mistake than meant.
func parseSet(source string, files []compiler.File) (policySet, error) {
	if len(files) == 0 {
		return policySet{}, errors.New("no policy file was given; to take all policies away, use `thole cleanup`")
	}
	docs, err := compiler.Parse(files)
	if err != nil {
		return policySet{}, err
	}
	return policySet{source: source, files: files, docs: docs}, nil
}

// equal reports whether both were read from the same files.
func (s policySet) equal(t policySet) bool {
	return s.source == t.source && slices.EqualFunc(s.files, t.files, func(a, b compiler.File) bool {
		return a.Name == b.Name && slices.Equal(a.Data, b.Data)
	})
}

func compilerFiles(files []File) []compiler.File {
	out := make([]compiler.File, len(files))
	for i, f := range files {
		out[i] = compiler.File{Name: f.Name, Data: []byte(f.Data)}
	}
	return out
}
