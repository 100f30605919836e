package printable

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

var (
	unquoteText = strings.NewReplacer(`\"`, `"`, `\\`, `\`)
	unquoteCell = strings.NewReplacer(`\"`, `"`, `\\`, `\\`) // a backslash stays escaped
)

// Cell is for text that comes from outside as a whole, as a name: it can be read back.
func Cell(s string) string { return unquoteCell.Replace(quoted(s)) }

// Line is for text of one line that may have parts from outside.
func Line(s string) string { return unquoteText.Replace(quoted(s)) }

// Text is for text of any number of lines that may have parts from outside.
func Text(s string) string { return escapeBetween(s, "\n") }

// Script is for a script of nft.
func Script(s string) string { return escapeBetween(s, "\n", "\t") }

func quoted(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// escapeBetween escapes all but the separators.
func escapeBetween(s string, separators ...string) string {
	if len(separators) == 0 {
		return Line(s)
	}
	parts := strings.Split(s, separators[0])
	for i, part := range parts {
		parts[i] = escapeBetween(part, separators[1:]...)
	}
	return strings.Join(parts, separators[0])
}

// Lines is Line of each word.
func Lines(words []string) []string {
	escaped := make([]string, len(words))
	for i, word := range words {
		escaped[i] = Line(word)
	}
	return escaped
}

// encodeUnprintable writes what cannot be printed in strings of JSON, or in YAML's between double quotes, as an
// escape of that language: \u and four digits, and wide for what needs more. The value stays the same.
func encodeUnprintable(data []byte, wide func(rune) string) []byte {
	var b bytes.Buffer
	for _, r := range string(data) {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			b.WriteString(wide(r))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

func wideInJSON(r rune) string {
	high, low := utf16.EncodeRune(r)
	return fmt.Sprintf(`\u%04x\u%04x`, high, low)
}

func wideInYAML(r rune) string { return fmt.Sprintf(`\U%08x`, r) }

// isPrintable reports whether nothing of s has to be escaped.
func isPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}

// A LogWriter encodes what cannot be printed in lines of JSON, each of which is one Write.
type LogWriter struct{ io.Writer }

// Write writes one line.
func (w LogWriter) Write(p []byte) (int, error) {
	if _, err := w.Writer.Write(encodeUnprintable(p, wideInJSON)); err != nil {
		return 0, err
	}
	return len(p), nil
}
