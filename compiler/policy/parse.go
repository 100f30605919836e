package policy

import (
	"cmp"
	"slices"
)

// Limits of what Parse reads, so that a hostile or broken file costs little. A
// policy set of ordinary size is two orders of magnitude below each.
const (
	maxFileSize  = 1 << 20 // bytes
	maxDocuments = 4096    // in one file
	maxDepth     = 24      // of lists and mappings; the deepest that has a meaning is 11
)

// A File is the content of one file. Name is used in messages only.
type File struct {
	Name string
	Data []byte
}

// A SyntaxError says what is wrong with a file, and where. The message has the
// form "what was found; what is allowed".
type SyntaxError struct {
	Position Position
	Message  string
}

func (e *SyntaxError) Error() string { return e.Position.String() + ": " + e.Message }

// Parse reads files as one set of documents. It is strict: what it does not know
// is an error, because a policy with a misspelt key is a policy that is not
// there. The error is a *SyntaxError, the one that stands first: by the order of
// files, then line, then column. (Two things go before the rest of their file: text
// that is not text, and inside one document YAML that is not YAML.)
//
// It passes three forms, each of which knows less about the one before:
//
//	text     checkText     bytes → characters that every reader agrees about
//	YAML     rawDocument   characters → rawNodes: mappings, lists and scalars, with positions
//	meaning  decoder       rawNodes → valid documents
//
// and validate.go holds documents against each other.
func Parse(files []File) (Documents, error) {
	all := newDocumentSet()
	for _, f := range files {
		if err := all.add(f); err != nil {
			return Documents{}, err
		}
	}
	return all.sorted(), nil
}

// add parses one file and adds its documents. The error is untyped nil if there is none.
func (s *documentSet) add(f File) error {
	if f.Name == "" {
		f.Name = "-"
	}
	d := &decoder{file: f.Name}
	d.decodeFile(f.Data, s)
	if d.first != nil {
		return d.first
	}
	return nil
}

// decodeFile passes a file through all forms, up to the first document that has a
// mistake.
func (d *decoder) decodeFile(data []byte, into *documentSet) {
	if !d.checkText(data) {
		return
	}
	for i, c := range splitDocuments(data) {
		if i == maxDocuments {
			d.fail(d.at(c.line, 1), "more than %d documents in one file; allowed: %[1]d, divide the file", maxDocuments)
			return
		}
		if n, ok := d.rawDocument(c); ok {
			d.document(n, into)
		}
		if d.first != nil {
			return
		}
	}
}

// sorted returns the documents, each kind by name.
func (s *documentSet) sorted() Documents {
	slices.SortFunc(s.docs.Policies, func(a, b Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.docs.Bindings, func(a, b Binding) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.docs.Grants, func(a, b LabelGrant) int { return cmp.Compare(a.Name, b.Name) })
	return s.docs
}
