// Package strictjson reads JSON that another program has written. encoding/json accepts texts that two readers can
// understand differently: an object with a member twice, or in two spellings, or a string with half a surrogate pair.
//
// [Object] refuses such texts. [Scanner] and [Members] walk through a text as it is spelled, for callers with other
// rules. Each of them takes one pass and little memory, whatever the bytes.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	// ErrForm is matched by the error about a text that is no JSON object in UTF-8, is nested too deep, or has a string
	// or a number that not every reader can hold.
	ErrForm = errors.New("not a JSON object")
	// ErrTwice is returned for an object with two members whose names are equal but for case.
	ErrTwice = errors.New("a member that is there twice, or differs from another in case only")

	errUTF8      = fmt.Errorf("%w in UTF-8", ErrForm)
	errDepth     = fmt.Errorf("%w that every reader takes: it is nested too deep", ErrForm)
	errSurrogate = fmt.Errorf("%w that every reader takes: a string has half a surrogate pair", ErrForm)
	errNumber    = fmt.Errorf("%w that every reader takes: a number is beyond those of 64 bits in floating point", ErrForm)
)

// Valid reports whether b is JSON in which objects and arrays lie in each other at most so deep. It looks at
// the depth first: encoding/json keeps note of ten thousand levels before it gives up.
func Valid(b []byte, depth int) bool { return nesting(b) <= depth && json.Valid(b) }

// nesting is how deep objects and arrays lie in each other.
func nesting(b []byte) (deepest int) {
	s := Scan(b)
	depth := 0
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case '"':
			s.String()
			continue
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
		s.at++
	}
	return deepest
}

// Object calls each for every member of the JSON object that b is, in order, with the name
// unescaped and the value as it stands there. It is stricter than encoding/json: no object in b, however deep, has
// two members whose names are equal but for case, strings are UTF-8 without lone surrogates, objects and arrays
// lie in each other at most so deep, numbers are within the range of a float64, and nothing but white space surrounds
// the object.
func Object(b []byte, depth int, each func(name, value []byte) error) error {
	if !utf8.Valid(b) {
		return errUTF8
	}
	s := checker{Scan(b)}
	s.space()
	if err := s.object(depth, each); err != nil {
		return err
	}
	if s.Peek(); s.at != len(b) {
		return ErrForm
	}
	return nil
}

// checker reads JSON of which nothing is known yet.
type checker struct{ Scanner }

// object reads an object, and everything in it.
func (s *checker) object(depth int, each func(name, value []byte) error) error {
	if depth == 0 && s.peek() == '{' {
		return errDepth
	}
	if !s.take('{') {
		return ErrForm
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
			return ErrTwice
		}
		s.space()
		if !s.take(':') {
			return ErrForm
		}
		s.space()
		start := s.at
		if err := s.value(depth - 1); err != nil {
			return err
		}
		if each != nil {
			if err := each(name, s.data[start:s.at]); err != nil {
				return err
			}
		}
		s.space()
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return ErrForm
		}
		s.space()
	}
}

func (s *checker) array(depth int) error {
	if depth == 0 {
		return errDepth
	}
	if !s.take('[') {
		return ErrForm
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
			return ErrForm
		}
		s.space()
	}
}

func (s *checker) value(depth int) error {
	switch c := s.peek(); {
	case c == '{':
		return s.object(depth, nil)
	case c == '[':
		return s.array(depth)
	case c == '"':
		return s.text()
	case c == '-' || digit(c):
		return s.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.data[s.at:], []byte(word)) {
			s.at += len(word)
			return nil
		}
	}
	return ErrForm
}

// name reads a string and returns it unescaped.
func (s *checker) name() ([]byte, error) {
	begin := s.at
	if err := s.text(); err != nil {
		return nil, err
	}
	return Unescape(s.data[begin+1 : s.at-1]), nil
}

// text reads a string with its quotation marks.
func (s *checker) text() error {
	if !s.take('"') {
		return ErrForm
	}
	for {
		for s.at < len(s.data) && s.data[s.at] >= ' ' && s.data[s.at] != '"' && s.data[s.at] != '\\' {
			s.at++
		}
		if s.take('"') {
			return nil
		}
		if s.peek() != '\\' {
			return ErrForm
		}
		if err := s.escape(); err != nil {
			return err
		}
	}
}

// escape reads one escape, or the two of a surrogate pair.
func (s *checker) escape() error {
	s.at++
	c := s.peek()
	s.at++
	if c != 'u' {
		if strings.IndexByte(`"\/bfnrt`, c) < 0 {
			return ErrForm
		}
		return nil
	}
	first, ok := s.hex()
	switch {
	case !ok:
		return ErrForm
	case first < 0xd800 || first > 0xdfff:
		return nil
	case first > 0xdbff || !s.take('\\') || !s.take('u'):
		return errSurrogate
	}
	if second, ok := s.hex(); !ok || second < 0xdc00 || second > 0xdfff {
		return errSurrogate
	}
	return nil
}

func (s *checker) hex() (n int, ok bool) {
	for range 4 {
		c := s.peek()
		s.at++
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

func (s *checker) number() error {
	start := s.at
	s.take('-')
	if !s.take('0') && !s.digits() {
		return ErrForm
	}
	if s.take('.') && !s.digits() {
		return ErrForm
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		if !s.digits() {
			return ErrForm
		}
	}
	return inRange(s.data[start:s.at])
}

// inRange refuses a number that is infinite where it is read as a float64, as most readers do.
func inRange(number []byte) error {
	const short = 300 // so many digits and no exponent: always in range
	if len(number) <= short && !bytes.ContainsAny(number, "eE") {
		return nil
	}
	if _, err := strconv.ParseFloat(string(number), 64); err != nil {
		return errNumber
	}
	return nil
}

func (s *checker) digits() bool {
	start := s.at
	for digit(s.peek()) {
		s.at++
	}
	return s.at > start
}

// Unescape returns what a string stands for that is spelled like this between its quotation marks, in text that
// Object has taken.
func Unescape(spelled []byte) []byte {
	if bytes.IndexByte(spelled, '\\') < 0 {
		return spelled
	}
	var text string
	json.Unmarshal(append(append([]byte{'"'}, spelled...), '"'), &text) // it is valid
	return []byte(text)
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
