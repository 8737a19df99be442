package bounded

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"

	"example.com/keyring/internal/strictjson"
)

// walker goes through valid JSON, and allocates nothing but its error.
type walker struct {
	in       strictjson.Scanner
	elements int // of all lists and dictionaries so far
	strict   bool
}

// value goes through one value, which has to have the shape.
func (w *walker) value(s *shape) error {
	first := w.in.Peek()
	switch {
	case first == 'n':
		w.in.Skip()
		return nil
	case s.kind == raw:
		if n := len(w.in.Skip()); n > s.most {
			return tooMany(n, "bytes", s.most)
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
		w.in.Skip()
		return nil
	}
	return fmt.Errorf("%w: another kind of value is expected", ErrForm)
}

func tooMany(n int, what string, most int) error {
	return fmt.Errorf("%w: %d %s, at most %d", ErrBound, n, what, most)
}

// text goes through a string that decodes to at most most bytes.
func (w *walker) text(most int) error {
	if n := decodedLen(w.in.String()); n > most {
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
	for n := 0; w.in.Next('[', ']'); n++ {
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
	for n := 0; w.in.Next('{', '}'); n++ {
		if err := w.count(n, s.most); err != nil {
			return err
		}
		if err := w.text(s.keys); err != nil {
			return fmt.Errorf("key %d: %w", n, err)
		}
		w.in.Colon()
		if err := w.value(s.elem); err != nil {
			return fmt.Errorf("element %d: %w", n, err)
		}
	}
	return nil
}

func (w *walker) object(s *shape) error {
	var seen uint64
	for w.in.Next('{', '}') {
		name := w.in.String()
		w.in.Colon()
		i, err := w.find(s, name)
		switch {
		case err != nil:
			return err
		case i < 0:
			w.in.Skip()
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

// find returns the index of the member with that name, or -1 for a name to ignore. A name in another case is an error:
// encoding/json would take it for the member, without a bound.
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

// decodedLen is the number of bytes to which the inside of a string decodes, or a few more if it has escaped
// surrogates.
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
