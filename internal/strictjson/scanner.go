package strictjson

import (
	"bytes"
	"iter"
)

// Scanner walks through JSON text that is known to be valid, and allocates nothing. Of other text it gives
// what it can, without panicking.
type Scanner struct {
	data []byte
	at   int
}

// Scan returns a scanner at the beginning of b.
func Scan(b []byte) Scanner { return Scanner{data: b} }

// space are the bytes of white space.
const space = " \t\r\n"

func (s *Scanner) space() {
	for s.at < len(s.data) && (s.data[s.at] == ' ' || s.data[s.at] == '\t' || s.data[s.at] == '\r' || s.data[s.at] == '\n') {
		s.at++
	}
}

// Peek returns the next byte that is not white space, or zero at the end.
func (s *Scanner) Peek() byte {
	s.space()
	return s.peek()
}

// peek returns the next byte, or zero at the end: no JSON text has one.
func (s *Scanner) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

// take passes over that byte, if it is the next.
func (s *Scanner) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

// Next goes to the next element of a list or member of an object with these brackets, and reports whether there
// is one. At the first call the scanner is at the opening bracket, later behind an element; at the end it is behind the
// closing one.
func (s *Scanner) Next(open, end byte) bool {
	if s.space(); s.take(open) {
		s.space()
		return !s.take(end)
	}
	if s.take(',') {
		return true
	}
	s.take(end)
	return false
}

// String passes over a string and returns what is between its quotation marks, as it is spelled: nil if there is no
// string.
func (s *Scanner) String() []byte {
	if s.space(); !s.take('"') {
		return nil
	}
	begin := s.at
	for ; s.at < len(s.data); s.at++ {
		switch s.data[s.at] {
		case '\\':
			s.at++
		case '"':
			s.at++
			return s.data[begin : s.at-1 : s.at-1]
		}
	}
	s.at = len(s.data)
	return s.data[begin:]
}

// Colon passes over the colon behind a name, and reports whether there is one.
func (s *Scanner) Colon() bool {
	s.space()
	return s.take(':')
}

// Skip passes over a value, to the comma or the bracket that follows it, and returns it.
func (s *Scanner) Skip() []byte {
	s.space()
	begin := s.at
	s.skip()
	return bytes.TrimRight(s.data[begin:s.at], space)
}

func (s *Scanner) skip() {
	for depth := 0; s.at < len(s.data); {
		switch s.data[s.at] {
		case '"':
			s.String()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return
			}
			depth--
		case ',':
			if depth == 0 {
				return
			}
		}
		s.at++
	}
}

// Members yields what is between the quotation marks of each name in the JSON object b, and the value, as
// they are spelled. Of what is not valid JSON it yields what it can.
func Members(b []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		s := Scan(b)
		if s.Peek() != '{' {
			return
		}
		for s.Next('{', '}') {
			name := s.String()
			if name == nil || !s.Colon() || !yield(name, s.Skip()) {
				return
			}
		}
	}
}
