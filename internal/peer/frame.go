package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Bounds on what raft reads. The frames of raft's network transport carry no length: its decoder reads on for as
// long as the values in them say.
const (
	// MaxEntry is the most bytes of one log entry that a frame carries.
	MaxEntry = 4 << 20

	// MaxFrame is the most bytes of one request, the data of a snapshot apart.
	MaxFrame = MaxEntry + 64<<10

	maxLevels       = 16
	maxValues       = 8192 // a request of 64 entries has 850, keys of maps included
	maxAnswer       = 64 << 10
	maxAnswerValues = 64 // an answer has 14

	// The read rate: once a request has begun, rateBytes of it or of the snapshot behind it, or the rest if
	// that is less, have to come within rateTime of reading.
	rateBytes = 64 << 10
	rateTime  = 10 * time.Second
)

// Why a frame was refused.
var (
	errRPCType     = errors.New("raft frame: unknown type")
	errFrameBytes  = errors.New("raft frame: too many bytes")
	errFrameValues = errors.New("raft frame: too many values")
	errFrameLevels = errors.New("raft frame: nested too deeply")
	errFrameForm   = errors.New("raft frame: not of the form that raft's have")
	errFrameSlow   = errors.New("raft frame: its bytes, or those of its snapshot, come too slowly")
)

// RaftRequests bounds what raft reads from a connection that the port has admitted. A request beyond the bounds, or
// of another form than raft's, ends the connection with an error before its bytes are handed on. So does a
// request that comes too slowly, because raft reads a snapshot in the goroutine that does everything else. The
// time between two reads does not count. After a snapshot the connection ends: raft does not use it again. A connection that
// this server has closed between two requests has ended too: raft would log another error than io.EOF as one.
//
// It sets the read deadlines of c.
func RaftRequests(c net.Conn) net.Conn {
	return &framed{Conn: c, scanner: scanner{next: atType}, requests: true}
}

// RaftAnswers bounds what raft reads from a connection that it has dialled. raft itself bounds how long that may
// take.
func RaftAnswers(c net.Conn) net.Conn {
	return &framed{Conn: c, scanner: scanner{next: atText}}
}

// framed scans what is read.
type framed struct {
	net.Conn
	scanner  scanner
	requests bool // it has no answers
	rate     readRate
	err      error // why a frame was refused
}

// readRate measures how fast a request comes, in steps of rateBytes.
type readRate struct {
	frame uint64        // the number of the request
	bytes int           // that have come in this step
	left  time.Duration // for which this step may still wait
}

// Read implements net.Conn. It allocates nothing.
func (f *framed) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if f.scanner.over() {
		return 0, io.EOF
	}
	n, err := f.read(p)
	n, bad := f.scanner.scan(p[:n])
	f.rate.add(n, f.scanner.frame)
	if bad == nil && f.scanner.within() && errors.Is(err, os.ErrDeadlineExceeded) {
		bad = errFrameSlow
	}
	if bad == nil && f.requests && !f.scanner.within() && errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	if bad == nil {
		return n, err
	}
	f.err = bad
	if c, ok := f.Conn.(*Conn); ok {
		f.err = fmt.Errorf("%s: %w", c.peer, bad)
	}
	cutOff(f.Conn)
	return 0, f.err
}

// read reads, and within a request waits no longer than the read rate allows. Only a closed connection refuses a
// deadline, and then Read returns a better error.
func (f *framed) read(p []byte) (int, error) {
	if !f.scanner.within() {
		return f.Conn.Read(p)
	}
	began := time.Now()
	f.Conn.SetReadDeadline(began.Add(f.rate.left))
	n, err := f.Conn.Read(p)
	f.Conn.SetReadDeadline(time.Time{})
	f.rate.left -= time.Since(began)
	return n, err
}

// add notes that n bytes have come, the last of which belongs to that frame.
func (r *readRate) add(n int, frame uint64) {
	r.bytes += n
	if frame != r.frame || r.bytes >= rateBytes {
		*r = readRate{frame: frame, left: rateTime}
	}
}

// place says what comes next outside of all maps and arrays.
type place uint8

const (
	atType     place = iota // of a request, one byte
	atRequest               // a map
	atSnapshot              // bytes, as many as the request has said
	atText                  // the error of an answer, which may be empty
	atAnswer                // a map, or nil if there was an error
)

// rpcInstallSnapshot is the type of the request that is followed by a snapshot, and rpcLast the highest type that
// raft has.
const (
	rpcInstallSnapshot = 2
	rpcLast            = 4
)

// scanner follows the frames in a stream of bytes, which may come in pieces of any size. It accepts the part of
// msgpack that raft writes: the keys of maps are strings, and the elements of arrays, which are log entries, are
// maps. raft's decoder would turn a nil there into an entry on which raft panics.
//
// A frame is a type and a map, or a string and a map if it is an answer. The map of
// InstallSnapshot has a Size, and that many bytes follow.
type scanner struct {
	next   place
	bytes  int // that the frame may still have
	values int // likewise

	kind  pack   // of the value under way
	width int    // of its number
	need  int    // bytes of that still to come
	num   uint64 // what came of it
	skip  int    // bytes of a string still to come

	levels [maxLevels]level
	depth  int

	frame    uint64 // how many requests have begun
	snapshot bool   // the request is InstallSnapshot
	sizeNext bool   // the next value is its Size
	size     int64  // -1 if that is not known; then what is to come of the snapshot
}

// level is a map or an array that is not at its end.
type level struct {
	left  int // values; of a map, keys too
	isMap bool
}

// over reports whether a snapshot has come to its end, which is that of the stream.
func (s *scanner) over() bool { return s.next == atSnapshot && s.size == 0 }

// within reports whether a request has begun, and neither it nor its snapshot is at its end.
func (s *scanner) within() bool { return s.frame > 0 && s.next != atType && !s.over() }

// scan returns how many bytes of p may pass: all, up to the end of a snapshot.
func (s *scanner) scan(p []byte) (int, error) {
	for i := 0; i < len(p); {
		var err error
		switch {
		case s.skip > 0:
			n := min(s.skip, len(p)-i)
			i += n
			if s.skip -= n; s.skip == 0 {
				err = s.ended()
			}
		case s.need > 0:
			s.num = s.num<<8 | uint64(p[i])
			i++
			if s.need--; s.need == 0 {
				err = s.known()
			}
		case s.over():
			return i, nil
		case s.next == atSnapshot:
			n := min(s.size, int64(len(p)-i))
			i += int(n)
			s.size -= n
		case s.next == atType:
			err = s.request(p[i])
			i++
		default:
			err = s.begin(p[i])
			i++
		}
		if err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// request begins a frame with its type.
func (s *scanner) request(rpc byte) error {
	if rpc > rpcLast {
		return errRPCType
	}
	s.next = atRequest
	s.frame++
	s.bytes, s.values = MaxFrame-1, maxValues
	s.snapshot, s.size = rpc == rpcInstallSnapshot, -1
	return nil
}

// begin begins a value with its first byte.
func (s *scanner) begin(b byte) error {
	if s.next == atText && s.depth == 0 {
		s.bytes, s.values = maxAnswer, maxAnswerValues
	}
	kind, width, n := form(b)
	if !s.fits(kind) {
		return errFrameForm
	}
	if s.bytes -= 1 + width; s.bytes < 0 {
		return errFrameBytes
	}
	s.kind, s.width, s.need, s.num = kind, width, width, uint64(n)
	if width > 0 {
		s.num = 0
		return nil
	}
	return s.known()
}

// fits reports whether a value of the kind may stand where the scanner is.
func (s *scanner) fits(k pack) bool {
	switch {
	case k == packUnknown:
		return false
	case s.depth > 0 && !s.top().isMap:
		return k == packMap
	case s.depth > 0 && s.atKey():
		return k == packText
	case s.depth > 0:
		return !s.sizeNext || k == packInt || k == packUint
	case s.next == atText:
		return k == packText
	case s.next == atAnswer:
		return k == packMap || k == packNil
	}
	return k == packMap
}

func (s *scanner) top() *level { return &s.levels[s.depth-1] }

// atKey reports whether the value under way is a key.
func (s *scanner) atKey() bool { return s.depth > 0 && s.top().isMap && s.top().left%2 == 0 }

// known goes on with a value whose number, or length, is there.
func (s *scanner) known() error {
	switch s.kind {
	case packText, packBytes:
		return s.text(s.num)
	case packArray:
		return s.enter(s.num, false)
	case packMap:
		return s.enter(2*s.num, true)
	case packWord:
		s.sizeNext = s.num == 'S'<<24|'i'<<16|'z'<<8|'e'
	case packInt, packUint:
		if s.sizeNext {
			return s.sized()
		}
	}
	return s.ended()
}

// text begins the bytes of a string, of which one key is read: Size.
func (s *scanner) text(n uint64) error {
	if n > uint64(s.bytes) {
		return errFrameBytes
	}
	s.bytes -= int(n)
	switch {
	case n == 0:
		return s.ended()
	case n == 4 && s.snapshot && s.depth == 1 && s.atKey():
		s.kind, s.need, s.num = packWord, 4, 0
	default:
		s.skip = int(n)
	}
	return nil
}

// sized takes the value of Size. Of two, raft's decoder would take the last.
func (s *scanner) sized() error {
	n := int64(s.num)
	if s.kind == packInt && s.width > 0 {
		unused := 64 - 8*s.width
		n = n << unused >> unused
	}
	if n < 0 || s.size >= 0 {
		return errFrameForm
	}
	s.size, s.sizeNext = n, false
	return s.ended()
}

// enter begins a map or an array.
func (s *scanner) enter(values uint64, isMap bool) error {
	switch {
	case values > uint64(s.values):
		return errFrameValues
	case values == 0:
		return s.ended()
	case s.depth == maxLevels:
		return errFrameLevels
	}
	s.values -= int(values)
	s.levels[s.depth] = level{int(values), isMap}
	s.depth++
	return nil
}

// ended ends a value, all that it is the last value of, and the frame with the last of that.
func (s *scanner) ended() error {
	for s.depth > 0 {
		top := s.top()
		if top.left--; top.left > 0 {
			return nil
		}
		s.depth--
	}
	switch {
	case s.next == atText:
		s.next = atAnswer
	case s.next == atAnswer:
		s.next = atText
	case !s.snapshot:
		s.next = atType
	case s.size < 0:
		return errFrameForm
	default:
		s.next = atSnapshot
	}
	return nil
}

// pack is a kind of value in msgpack, with packWord for a key that is read.
type pack uint8

const (
	packUnknown pack = iota // the reserved byte, and extensions
	packNil
	packBool
	packInt
	packUint
	packFloat
	packText
	packBytes
	packArray
	packMap
	packWord
)

// form reads the first byte of a value: what it is, and its number or length, or else how
// many bytes follow that have it.
func form(b byte) (k pack, width, n int) {
	switch {
	case b < 0x80, b >= 0xe0:
		return packInt, 0, int(int8(b))
	case b < 0x90:
		return packMap, 0, int(b & 0x0f)
	case b < 0xa0:
		return packArray, 0, int(b & 0x0f)
	case b < 0xc0:
		return packText, 0, int(b & 0x1f)
	case b == 0xc0:
		return packNil, 0, 0
	case b == 0xc2, b == 0xc3:
		return packBool, 0, 0
	case b >= 0xc4 && b <= 0xc6:
		return packBytes, 1 << (b - 0xc4), 0
	case b == 0xca, b == 0xcb:
		return packFloat, 4 << (b - 0xca), 0
	case b >= 0xcc && b <= 0xcf:
		return packUint, 1 << (b - 0xcc), 0
	case b >= 0xd0 && b <= 0xd3:
		return packInt, 1 << (b - 0xd0), 0
	case b >= 0xd9 && b <= 0xdb:
		return packText, 1 << (b - 0xd9), 0
	case b == 0xdc, b == 0xdd:
		return packArray, 2 << (b - 0xdc), 0
	case b == 0xde, b == 0xdf:
		return packMap, 2 << (b - 0xde), 0
	}
	return packUnknown, 0, 0
}
