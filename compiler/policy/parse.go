package policy

import (
	"cmp"
	"slices"

	"thole/compiler/policy/strict"
)

// A File is the content of one file. Name is used in messages only.
type File struct {
	Name string
	Data []byte
}

// A Position is a place in a file.
type Position = strict.Position

// A SyntaxError says what is wrong with a file, and where.
type SyntaxError = strict.SyntaxError

// Parse reads files as one set of documents. It is strict: what it does not know
// is an error, because a policy with a misspelt key is a policy that is not
// there. The error is a *SyntaxError, the one that stands first: by the order of
// files, then line, then column. (Two things go before the rest of their file: text
// that is not text, and inside one document YAML that is not YAML.)
//
// Package strict makes nodes of the text, a decoder makes valid documents of the nodes,
// and validate.go holds documents against each other.
func Parse(files []File) (Documents, error) {
	all := newDocumentSet()
	for _, f := range files {
		if err := all.add(f, false); err != nil {
			return Documents{}, err
		}
	}
	return all.sorted(), nil
}

// ParseInventory reads a file as Parse does. Workload documents may also say who gave their labels (labelSources), and
// have labels that tools and images gave.
func ParseInventory(f File) (Documents, error) {
	all := newDocumentSet()
	if err := all.add(f, true); err != nil {
		return Documents{}, err
	}
	return all.sorted(), nil
}

// add parses one file and adds its documents.
func (s *documentSet) add(f File, inventory bool) error {
	d := decoder{strict.NewDecoder(cmp.Or(f.Name, "-")), inventory}
	d.EachDocument(f.Data, func(n strict.Node) { d.document(n, s) })
	if err := d.Err(); err != nil {
		return err // not of the type *SyntaxError where it is nil
	}
	return nil
}

// A decoder makes documents of the nodes of one file.
type decoder struct {
	*strict.Decoder
	inventory bool // the file is one
}

// sorted returns the documents, each kind by name.
func (s *documentSet) sorted() Documents {
	slices.SortFunc(s.docs.Policies, func(a, b Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.docs.Bindings, func(a, b Binding) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.docs.Grants, func(a, b LabelGrant) int { return cmp.Compare(a.Name, b.Name) })
	return s.docs
}
