package nks

import (
	"bytes"
	"encoding/json"
	"iter"
	"maps"
	"slices"
)

// What encoding/json does not tell: whether an object has a member twice, or one that is spelled
// in another case. Everything here takes one pass, whatever the bytes.

// maxNesting is several times what Nomad's files have.
const maxNesting = 16

// validJSON looks at the nesting first: encoding/json keeps note of ten thousand levels before
// it gives up.
func validJSON(b []byte) bool { return nesting(b) <= maxNesting && json.Valid(b) }

// object returns those members of the JSON object b that are known, and whether there are
// others. A member that is null is absent. One that is there twice is an error.
func object(b []byte, known []string) (found map[string][]byte, others bool, err error) {
	if _, ok := cutByte(b, '{'); !ok {
		return nil, false, malformedNomad("no object where one belongs")
	}
	found = make(map[string][]byte, len(known))
	for name, value := range members(b) {
		i := slices.IndexFunc(known, func(k string) bool { return k == string(name) })
		if i < 0 {
			others = true
			continue
		}
		if _, twice := found[known[i]]; twice {
			return nil, false, malformedNomad("a member twice")
		}
		found[known[i]] = value
	}
	maps.DeleteFunc(found, func(_ string, v []byte) bool { return string(v) == "null" })
	return found, others, nil
}

func hasMember(b []byte, name string) bool {
	for n := range members(b) {
		if string(n) == name {
			return true
		}
	}
	return false
}

// members yields what is between the quotes of each name in the JSON object b, and the value, as
// they are spelled. Of what is not valid JSON it yields what it can.
func members(b []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		rest, more := cutByte(b, '{')
		for more {
			rest = trimSpace(rest)
			n := stringLen(rest)
			if n < 2 {
				return
			}
			name := rest[1 : n-1]
			if rest, more = cutByte(rest[n:], ':'); !more {
				return
			}
			n = valueLen(rest)
			if !yield(name, bytes.Trim(rest[:n], space)) {
				return
			}
			rest, more = cutByte(rest[n:], ',')
		}
	}
}

// valueLen is how much of b lies before the comma or the bracket that follows a value.
func valueLen(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i += stringLen(b[i:]) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

// nesting is how deep objects and arrays lie in each other.
func nesting(b []byte) (deepest int) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i += stringLen(b[i:]) - 1
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// stringLen is the length, quotes included, of the string that b begins with: 0 if there is
// none, and all of b if it has no end.
func stringLen(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return 0
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

const space = " \t\r\n"

func trimSpace(b []byte) []byte { return bytes.TrimLeft(b, space) }

// cutByte cuts c off b, and the white space before it.
func cutByte(b []byte, c byte) (rest []byte, ok bool) {
	b = trimSpace(b)
	if len(b) == 0 || b[0] != c {
		return b, false
	}
	return b[1:], true
}
