package admin

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// What a terminal is sent: names and errors come from files and from other servers, and a terminal obeys
// control characters.

// line returns a text as one line without control characters: each is escaped as in JSON, and bytes that are
// no UTF-8 as in Go.
func line(text string) string { return escape(text, "") }

// flat is line for an error, which may join others, each on a line of its own: there is a semicolon between
// them.
func flat(text string) string {
	return line(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; "))
}

// escape escapes all that is not printable, but for what is in keep.
func escape(text, keep string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case strconv.IsPrint(r) || strings.ContainsRune(keep, r):
			b.WriteRune(r)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
		i += n
	}
	return b.String()
}

// printable writes to w what it is given without control characters, but for the ends of lines, and tabs.
// JSON stays the same JSON. Where a text may have ends of lines that are not its printer's, line comes first.
// No write may end within a character.
type printable struct{ w io.Writer }

func (p printable) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, escape(string(b), "\n\t")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// isTerminal reports whether w is one. What a script or a log gets is not drawn in, and a secret that it gets
// is as it was put.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
