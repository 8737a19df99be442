package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth is how deep claims may be nested.
const maxDepth = 64

var (
	errJSON      = errors.New("not a JSON object")
	errDuplicate = errors.New("a member that is there twice, or differs from another in case only")
)

// members calls each for every member of the JSON object that b is, in order, with the name
// unescaped and the value as it stands there. It is stricter than encoding/json, which would
// take what two readers can understand differently: no object in it, however deep, may have
// two members whose names are equal but for case, strings are UTF-8 without lone surrogates,
// and nothing but white space surrounds the object.
func members(b []byte, each func(name, value []byte) error) error {
	if !utf8.Valid(b) {
		return errJSON
	}
	s := scanner{b: b}
	s.space()
	if err := s.object(maxDepth, each); err != nil {
		return err
	}
	s.space()
	if s.i != len(b) {
		return errJSON
	}
	return nil
}

// scanner reads JSON from b[i:].
type scanner struct {
	b []byte
	i int
}

// peek returns the next byte, or zero at the end: no JSON text has one.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.i++
	return true
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\t' || s.b[s.i] == '\n' || s.b[s.i] == '\r') {
		s.i++
	}
}

func (s *scanner) object(depth int, each func(name, value []byte) error) error {
	if depth == 0 || !s.take('{') {
		return errJSON
	}
	s.space()
	if s.take('}') {
		return nil
	}
	var seen names
	for {
		name, err := s.name()
		if err != nil {
			return err
		}
		if !seen.add(name) {
			return errDuplicate
		}
		s.space()
		if !s.take(':') {
			return errJSON
		}
		s.space()
		start := s.i
		if err := s.value(depth - 1); err != nil {
			return err
		}
		if each != nil {
			if err := each(name, s.b[start:s.i]); err != nil {
				return err
			}
		}
		s.space()
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return errJSON
		}
		s.space()
	}
}

func (s *scanner) array(depth int) error {
	if depth == 0 || !s.take('[') {
		return errJSON
	}
	s.space()
	if s.take(']') {
		return nil
	}
	for {
		if err := s.value(depth - 1); err != nil {
			return err
		}
		s.space()
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return errJSON
		}
		s.space()
	}
}

func (s *scanner) value(depth int) error {
	switch c := s.peek(); {
	case c == '{':
		return s.object(depth, nil)
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, err := s.text()
		return err
	case c == '-' || digit(c):
		return s.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.b[s.i:], []byte(word)) {
			s.i += len(word)
			return nil
		}
	}
	return errJSON
}

// name reads a string and returns it unescaped.
func (s *scanner) name() ([]byte, error) {
	start := s.i
	escaped, err := s.text()
	if err != nil {
		return nil, err
	}
	return unquote(s.b[start:s.i], escaped)
}

// unquote returns what stands between the quotation marks.
func unquote(quoted []byte, escaped bool) ([]byte, error) {
	if !escaped {
		return quoted[1 : len(quoted)-1], nil
	}
	var text string
	if err := json.Unmarshal(quoted, &text); err != nil {
		return nil, errJSON
	}
	return []byte(text), nil
}

// text reads a string with its quotation marks, and reports whether it has escapes.
func (s *scanner) text() (escaped bool, err error) {
	if !s.take('"') {
		return false, errJSON
	}
	for {
		for s.i < len(s.b) && s.b[s.i] >= ' ' && s.b[s.i] != '"' && s.b[s.i] != '\\' {
			s.i++
		}
		switch s.peek() {
		case '"':
			s.i++
			return escaped, nil
		case '\\':
			escaped = true
			if s.escape() {
				continue
			}
		}
		return false, errJSON
	}
}

// escape reads one escape, or the two of a surrogate pair.
func (s *scanner) escape() bool {
	s.i++
	c := s.peek()
	s.i++
	if c != 'u' {
		return strings.IndexByte(`"\/bfnrt`, c) >= 0
	}
	first, ok := s.hex()
	if !ok || first < 0xd800 || first > 0xdfff {
		return ok
	}
	if first > 0xdbff || !s.take('\\') || !s.take('u') {
		return false
	}
	second, ok := s.hex()
	return ok && second >= 0xdc00 && second <= 0xdfff
}

func (s *scanner) hex() (n int, ok bool) {
	for range 4 {
		c := s.peek()
		s.i++
		switch {
		case digit(c):
			n = n<<4 | int(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | int(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func (s *scanner) number() error {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return errJSON
	}
	if s.take('.') && !s.digits() {
		return errJSON
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return errJSON
		}
	}
	return nil
}

func (s *scanner) digits() bool {
	start := s.i
	for digit(s.peek()) {
		s.i++
	}
	return s.i > start
}

// names are those of one object. They are few as a rule, and compared one by one; a map of
// their folded forms takes over so that thousands cost no more than each its turn.
type names struct {
	few  [16][]byte
	n    int
	many map[string]bool
}

// add reports whether no name before was the same but for case.
func (s *names) add(name []byte) bool {
	if s.many == nil && s.n < len(s.few) {
		for _, other := range s.few[:s.n] {
			if bytes.EqualFold(other, name) {
				return false
			}
		}
		s.few[s.n] = name
		s.n++
		return true
	}
	if s.many == nil {
		s.many = map[string]bool{}
		for _, other := range s.few {
			s.many[fold(other)] = true
		}
	}
	folded := fold(name)
	if s.many[folded] {
		return false
	}
	s.many[folded] = true
	return true
}

// fold maps names that bytes.EqualFold takes for equal to the same string.
func fold(name []byte) string {
	return string(bytes.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, name))
}
