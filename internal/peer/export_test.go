package peer

// FrameEnds returns where requests end in a stream, and the error at which it stops being one.
func FrameEnds(stream []byte) (ends []int, err error) {
	s := scanner{next: atType}
	for i := range stream {
		if n, err := s.scan(stream[i : i+1]); n == 0 || err != nil {
			return ends, err
		}
		if s.depth == 0 && s.skip+s.need == 0 && (s.next == atType || s.over()) {
			ends = append(ends, i+1)
		}
	}
	return ends, nil
}
