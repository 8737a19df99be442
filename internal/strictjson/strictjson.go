// Package strictjson reads JSON that somebody else has written, where encoding/json would take what two readers
// can understand in two ways: an object that has a member twice, or in two spellings; half a surrogate pair.
//
// [Object] holds a whole text to these rules. [Scanner] and [Members] walk through a text as it is spelled, for those who
// have rules of their own. All of it takes one pass, and little memory, whatever the bytes.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode"
	"unicode/utf8"
)

var (
	// ErrForm is returned for what is no JSON object in UTF-8, or is nested too deep.
	ErrForm = errors.New("not a JSON object")
	// ErrTwice is returned for an object with two members whose names are equal but for case.
	ErrTwice = errors.New("a member that is there twice, or differs from another in case only")
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
// lie in each other at most so deep, and nothing but white space surrounds the object.
func Object(b []byte, depth int, each func(name, value []byte) error) error {
	s := Scan(b)
	if s.Peek() != '{' || !utf8.Valid(b) || !Valid(b, depth) {
		return ErrForm
	}
	return s.object(each)
}

// object passes over an object, in text that is valid.
func (s *Scanner) object(each func(name, value []byte) error) error {
	var seen names
	for s.Next('{', '}') {
		name := s.String()
		if !pairsSurrogates(name) {
			return ErrForm
		}
		if name = Unescape(name); !seen.add(name) {
			return ErrTwice
		}
		s.Colon()
		s.space()
		begin := s.at
		if err := s.value(); err != nil {
			return err
		}
		if each == nil {
			continue
		}
		if err := each(name, bytes.TrimRight(s.data[begin:s.at], space)); err != nil {
			return err
		}
	}
	return nil
}

// value passes over a value, in text that is valid.
func (s *Scanner) value() error {
	switch s.Peek() {
	case '{':
		return s.object(nil)
	case '[':
		for s.Next('[', ']') {
			if err := s.value(); err != nil {
				return err
			}
		}
	case '"':
		if !pairsSurrogates(s.String()) {
			return ErrForm
		}
	default:
		s.Skip()
	}
	return nil
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

// pairsSurrogates reports whether the surrogates in a valid string, which are always escaped, come in pairs.
func pairsSurrogates(spelled []byte) bool {
	for high := false; ; {
		i := bytes.IndexByte(spelled, '\\')
		if high && i != 0 {
			return false
		}
		if i < 0 {
			return true
		}
		spelled = spelled[i+1:]
		if spelled[0] != 'u' {
			if high {
				return false
			}
			spelled = spelled[1:]
			continue
		}
		unit := codeUnit(spelled[1:5])
		spelled = spelled[5:]
		if low := unit >= 0xdc00 && unit <= 0xdfff; low != high {
			return false
		}
		high = unit >= 0xd800 && unit <= 0xdbff
	}
}

// codeUnit is the number that four hexadecimal digits stand for.
func codeUnit(digits []byte) (n int) {
	for _, c := range digits {
		if c >= 'A' {
			c += 9 // 'A' and 'a' end in 1
		}
		n = n<<4 | int(c&0xf)
	}
	return n
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
