package bounded

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// walker goes through JSON that is valid, and allocates nothing but its error.
type walker struct {
	data     []byte
	at       int
	elements int // of all lists and dictionaries so far
	strict   bool
}

// value passes over one value that is to have the shape.
func (w *walker) value(s *shape) error {
	w.space()
	begin, first := w.at, w.data[w.at]
	switch {
	case first == 'n':
		w.skip()
		return nil
	case s.kind == raw:
		if w.skip(); w.at-begin > s.most {
			return tooMany(w.at-begin, "bytes", s.most)
		}
		return nil
	case s.kind == text && first == '"':
		return w.text(s.most)
	case s.kind == list && first == '[':
		return w.list(s)
	case s.kind == object && first == '{':
		return w.object(s)
	case s.kind == dictionary && first == '{':
		return w.dictionary(s)
	case s.kind == scalar && first != '"' && first != '[' && first != '{':
		w.skip()
		return nil
	}
	return fmt.Errorf("%w: another kind of value is expected", ErrForm)
}

func tooMany(n int, what string, most int) error {
	return fmt.Errorf("%w: %d %s, at most %d", ErrBound, n, what, most)
}

// text passes over a string of at most so many bytes, when it is decoded.
func (w *walker) text(most int) error {
	if n := decodedLen(w.string()); n > most {
		return tooMany(n, "bytes", most)
	}
	return nil
}

// count counts an element that comes after n others of its list.
func (w *walker) count(n, most int) error {
	if n == most {
		return fmt.Errorf("%w: more than %d elements", ErrBound, most)
	}
	if w.elements++; w.elements > MaxElements {
		return fmt.Errorf("%w: more than %d elements in all", ErrBound, MaxElements)
	}
	return nil
}

func (w *walker) list(s *shape) error {
	for n := 0; w.next(']'); n++ {
		if err := w.count(n, s.most); err != nil {
			return err
		}
		if err := w.value(s.elem); err != nil {
			return fmt.Errorf("element %d: %w", n, err)
		}
	}
	return nil
}

func (w *walker) dictionary(s *shape) error {
	for n := 0; w.next('}'); n++ {
		if err := w.count(n, s.most); err != nil {
			return err
		}
		if err := w.text(s.keys); err != nil {
			return fmt.Errorf("key %d: %w", n, err)
		}
		w.colon()
		if err := w.value(s.elem); err != nil {
			return fmt.Errorf("element %d: %w", n, err)
		}
	}
	return nil
}

func (w *walker) object(s *shape) error {
	var seen uint64
	for w.next('}') {
		name := w.string()
		w.colon()
		i, err := w.find(s, name)
		switch {
		case err != nil:
			return err
		case i < 0:
			w.skip()
			continue
		case seen&(1<<i) != 0:
			return fmt.Errorf("%w: %s comes twice", ErrForm, s.fields[i].name)
		}
		seen |= 1 << i
		if err := w.value(s.fields[i].shape); err != nil {
			return fmt.Errorf("%s: %w", s.fields[i].name, err)
		}
	}
	return nil
}

// find returns which member has the name, or -1 for one to pass over. encoding/json would take what is
// spelled in another case for the member, without a bound.
func (w *walker) find(s *shape, name []byte) (int, error) {
	if bytes.IndexByte(name, '\\') >= 0 {
		return 0, fmt.Errorf("%w: a name with an escape", ErrForm)
	}
	for i, f := range s.fields {
		if string(name) == f.name {
			return i, nil
		}
	}
	for _, f := range s.fields {
		if bytes.EqualFold(name, []byte(f.name)) {
			return 0, fmt.Errorf("%w: %s is spelled in another case", ErrForm, f.name)
		}
	}
	if w.strict {
		return 0, fmt.Errorf("%w: unknown member %.64q", ErrForm, name)
	}
	return -1, nil
}

// next goes to the next element of a list, or name of an object, and reports whether there is one. At the
// first call it is at the bracket, at a later one at the comma or the bracket that follows an element.
func (w *walker) next(end byte) bool {
	w.space()
	if w.data[w.at] == '[' && end == ']' || w.data[w.at] == '{' && end == '}' {
		w.at++
		w.space()
		if w.data[w.at] == end {
			w.at++
			return false
		}
		return true
	}
	c := w.data[w.at] // a comma, or the end
	w.at++
	w.space()
	return c != end
}

func (w *walker) space() {
	for w.at < len(w.data) {
		switch w.data[w.at] {
		case ' ', '\t', '\r', '\n':
			w.at++
		default:
			return
		}
	}
}

func (w *walker) colon() {
	w.space()
	w.at++
}

// string passes over a string and returns what is between its quotes.
func (w *walker) string() []byte {
	w.at++
	begin := w.at
	for ; w.data[w.at] != '"'; w.at++ {
		if w.data[w.at] == '\\' {
			w.at++
		}
	}
	w.at++
	return w.data[begin : w.at-1]
}

// skip passes over any value.
func (w *walker) skip() {
	w.space()
	for depth := 0; w.at < len(w.data); {
		switch w.data[w.at] {
		case '"':
			w.string()
		case '{', '[':
			depth++
			w.at++
		case '}', ']':
			if depth == 0 {
				return
			}
			depth--
			w.at++
		case ',':
			if depth == 0 {
				return
			}
			w.at++
		default:
			w.at++
			continue
		}
		if depth == 0 {
			return
		}
	}
}

// decodedLen is how many bytes what is between quotes decodes to, or a few more where there are escapes
// of surrogates.
func decodedLen(s []byte) int {
	n := len(s)
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return n
		}
		if s[i+1] != 'u' {
			n, s = n-1, s[i+2:]
			continue
		}
		r, _ := strconv.ParseUint(string(s[i+2:i+6]), 16, 16)
		size := utf8.RuneLen(rune(r))
		if size < 0 {
			size = utf8.UTFMax - 1 // half of a pair, or U+FFFD in its place
		}
		n, s = n-len(`\u0000`)+size, s[i+6:]
	}
}
