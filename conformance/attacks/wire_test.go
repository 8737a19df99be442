package attacks

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
)

// packed is msgpack that is written as it is.
type packed []byte

func packTo(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case packed:
		b.Write(v)
	case int:
		packTo(b, uint64(v))
	case uint64:
		b.WriteByte(0xcf)
		b.Write(binary.BigEndian.AppendUint64(nil, v))
	case bool:
		b.WriteByte(map[bool]byte{false: 0xc2, true: 0xc3}[v])
	case []byte:
		b.WriteByte(0xdb) // a string, as raft writes it
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(v))))
		b.Write(v)
	case []any:
		b.WriteByte(0xdd)
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(v))))
		for _, e := range v {
			packTo(b, e)
		}
	case map[string]any:
		b.WriteByte(0xdf)
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(v))))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			packTo(b, []byte(k))
			packTo(b, v[k])
		}
	default:
		panic(fmt.Sprintf("pack %T", v))
	}
}

// line is HTTP on a connection that is let in.
type line struct {
	net.Conn
	in *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c, bufio.NewReader(c)} }

// post makes a call.
func (l *line) post(path string, body []byte) (int, []byte, error) {
	if _, err := fmt.Fprintf(l, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		return 0, nil, err
	}
	return l.answer()
}

// answer reads the next.
func (l *line) answer() (int, []byte, error) {
	resp, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return 0, nil, err
	}
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}
