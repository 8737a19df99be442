package peer_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
)

// The numbers of raft's requests.
const (
	appendEntries = iota
	requestVote
	installSnapshot
	timeoutNow
	requestPreVote
)

// pack encodes as raft's transport does.
func pack(values ...any) []byte {
	var b bytes.Buffer
	var h codec.MsgpackHandle
	h.TimeNotBuiltin = true
	e := codec.NewEncoder(&b, &h)
	for _, v := range values {
		if err := e.Encode(v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func request(rpc byte, v any) []byte { return append([]byte{rpc}, pack(v)...) }

// filled sets every field to the largest that it can be, byte slices to n bytes.
func filled[T any](n int) *T {
	v := new(T)
	fill(reflect.ValueOf(v).Elem(), n)
	return v
}

func fill(v reflect.Value, n int) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 7, 8, 9, 10, 11, 12, time.FixedZone("", 3600))))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(bytes.Repeat([]byte{0xdb}, n))
		}
	case reflect.Uint64:
		v.SetUint(1<<64 - 1)
	case reflect.Int64, reflect.Int:
		v.SetInt(1<<63 - 1)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// entries is a request of n entries, of size bytes each.
func entries(n, size int) []byte {
	r := filled[raft.AppendEntriesRequest](20)
	for range n {
		r.Entries = append(r.Entries, filled[raft.Log](size))
	}
	return request(appendEntries, r)
}

// snapshot is the request before a snapshot of that size.
func snapshot(size int64) []byte {
	r := filled[raft.InstallSnapshotRequest](20)
	r.Size = size
	return request(installSnapshot, r)
}

// realFrames are requests of every kind that raft has, the last with its snapshot.
func realFrames() [][]byte {
	return [][]byte{
		entries(0, 0), entries(3, 0), entries(2, 40), request(appendEntries, new(raft.AppendEntriesRequest)),
		request(requestVote, filled[raft.RequestVoteRequest](20)), request(requestVote, new(raft.RequestVoteRequest)),
		request(requestPreVote, filled[raft.RequestPreVoteRequest](300)), request(timeoutNow, filled[raft.TimeoutNowRequest](20)),
		append(snapshot(5), 0xdb, 0xff, 0xff, 0xff, 0xff),
	}
}

// wire is a connection on which chunks arrive, one by each Read, or what of it there is room for.
type wire struct {
	net.Conn
	chunks [][]byte
	closed bool
}

func (w *wire) Read(p []byte) (int, error) {
	if len(w.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.chunks[0])
	if w.chunks[0] = w.chunks[0][n:]; len(w.chunks[0]) == 0 {
		w.chunks = w.chunks[1:]
	}
	return n, nil
}

func (w *wire) Close() error                    { w.closed = true; return nil }
func (w *wire) SetReadDeadline(time.Time) error { return nil }

// passed is what comes out of a connection in which the chunks arrive.
func passed(wrap func(net.Conn) net.Conn, chunks ...[]byte) ([]byte, error) {
	return io.ReadAll(wrap(&wire{chunks: slices.DeleteFunc(chunks, func(b []byte) bool { return len(b) == 0 })}))
}

func TestRaftsRequestsPass(t *testing.T) {
	stream := slices.Concat(realFrames()...)
	if got, err := passed(peer.RaftRequests, slices.Clone(stream)); !bytes.Equal(got, stream) || err != nil {
		t.Errorf("at once: %d bytes of %d, %v", len(got), len(stream), err)
	}
	for i := range stream {
		if got, err := passed(peer.RaftRequests, stream[:i], stream[i:]); !bytes.Equal(got, stream) || err != nil {
			t.Fatalf("cut at %d: %d bytes of %d, %v", i, len(got), len(stream), err)
		}
		if got, err := passed(peer.RaftRequests, stream[:i]); !bytes.Equal(got, stream[:i]) || err != nil {
			t.Fatalf("truncated at %d: %d bytes, %v", i, len(got), err)
		}
	}
	got, err := io.ReadAll(iotest.OneByteReader(peer.RaftRequests(&wire{chunks: [][]byte{stream}})))
	if !bytes.Equal(got, stream) || err != nil {
		t.Errorf("byte by byte: %d bytes, %v", len(got), err)
	}
}

func TestRaftsAnswersPass(t *testing.T) {
	stream := pack(
		"", filled[raft.AppendEntriesResponse](20), "no such term", new(raft.AppendEntriesResponse), "no header", nil,
		"", filled[raft.RequestVoteResponse](20), "", filled[raft.RequestPreVoteResponse](20),
		"", filled[raft.InstallSnapshotResponse](20), strings.Repeat("x", 300), filled[raft.TimeoutNowResponse](20),
	)
	for i := range stream {
		if got, err := passed(peer.RaftAnswers, stream[:i], stream[i:]); !bytes.Equal(got, stream) || err != nil {
			t.Fatalf("cut at %d: %d bytes of %d, %v", i, len(got), len(stream), err)
		}
	}
}

func TestFramesEndWhereRaftsDo(t *testing.T) {
	var want []int
	n := 0
	for _, f := range realFrames() {
		n += len(f)
		want = append(want, n)
	}
	if got, err := peer.FrameEnds(slices.Concat(realFrames()...)); !slices.Equal(got, want) || err != nil {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// The largest requests that raft makes stay far below the bounds.
func TestLargestRequestsPass(t *testing.T) {
	for name, b := range map[string][]byte{
		"64 entries":            entries(64, 1000),
		"eight times as many":   entries(8*64, 10),
		"the largest entry":     entries(1, peer.MaxEntry/2), // it has as much again as Extensions
		"the configuration":     request(installSnapshot, &raft.InstallSnapshotRequest{Configuration: make([]byte, 1<<20)}),
		"a frame to its bounds": exactly(peer.MaxFrame),
	} {
		if got, err := passed(peer.RaftRequests, b); !bytes.Equal(got, b) || err != nil {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(b), err)
		}
	}
}

// exactly is a request of n bytes.
func exactly(n int) []byte {
	b := request(requestVote, &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{Addr: make([]byte, 1<<20)}})
	return request(requestVote, &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{Addr: make([]byte, 1<<20+n-len(b))}})
}

// header is the first byte of a value, and its length in four more.
func header(b byte, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{b}, n) }

// badFrame is a frame that is refused, and what the error says.
type badFrame struct {
	frame []byte
	want  string
}

func badFrames() map[string]badFrame {
	const m1 = 0x81 // a map of one
	key := func(b ...byte) []byte { return append([]byte{appendEntries, m1, 0xa1, 'k'}, b...) }
	size := func(b ...byte) []byte { return append([]byte{installSnapshot, m1, 0xa4, 'S', 'i', 'z', 'e'}, b...) }
	list := func(b ...byte) []byte { return key(append([]byte{0x91}, b...)...) }
	return map[string]badFrame{
		"unknown type":               {[]byte{5}, "unknown type"},
		"TLS again":                  {[]byte{0x16}, "unknown type"},
		"string beyond the frame":    {key(header(0xdb, 200<<20)...), "too many bytes"},
		"bytes beyond the frame":     {key(header(0xc6, 200<<20)...), "too many bytes"},
		"longest string":             {key(header(0xdb, 1<<32-1)...), "too many bytes"},
		"key beyond the frame":       {append([]byte{requestVote, m1}, header(0xdb, peer.MaxFrame)...), "too many bytes"},
		"strings beyond the frame":   {append([]byte{requestVote}, pack(map[string][]byte{"a": make([]byte, 3<<20), "b": make([]byte, 3<<20)})...), "too many bytes"},
		"one byte beyond the frame":  {exactly(peer.MaxFrame + 1), "too many bytes"},
		"a number beyond the frame":  {slices.Concat([]byte{appendEntries, 0x82, 0xa1, 'a'}, header(0xc6, peer.MaxFrame-15), make([]byte, peer.MaxFrame-15), []byte{0xa1, 'b', 0xcf}), "too many bytes"},
		"array beyond the values":    {key(header(0xdd, 1e6)...), "too many values"},
		"longest array":              {key(header(0xdd, 1<<32-1)...), "too many values"},
		"map beyond the values":      {append([]byte{appendEntries}, header(0xdf, 4097)...), "too many values"},
		"longest map":                {append([]byte{appendEntries}, header(0xdf, 1<<32-1)...), "too many values"},
		"a million tiny entries":     {key(append(header(0xdd, 1e6), bytes.Repeat([]byte{0x80}, 1e6)...)...), "too many values"},
		"entries of tiny maps":       {key(append(header(0xdd, 4000), bytes.Repeat([]byte{m1, 0xa0, 0xc0}, 4000)...)...), "too many values"},
		"a million levels":           {append([]byte{appendEntries}, bytes.Repeat([]byte{m1, 0xa1, 'k'}, 1e6)...), "nested"},
		"a million levels of arrays": {key(bytes.Repeat([]byte{0x91, m1, 0xa1, 'k'}, 1e6)...), "nested"},
		"17 levels":                  {append(append([]byte{appendEntries}, bytes.Repeat([]byte{m1, 0xa1, 'k'}, 17)...), 0xc0), "nested"},
		"no map":                     {[]byte{appendEntries, 0xc0}, "form"},
		"an array as the request":    {[]byte{appendEntries, 0x90}, "form"},
		"a nil entry":                {list(0xc0), "form"},
		"a number as an entry":       {list(1), "form"},
		"an array in an array":       {list(0x90), "form"},
		"a nil key":                  {[]byte{appendEntries, m1, 0xc0}, "form"},
		"a number as a key":          {[]byte{appendEntries, m1, 1}, "form"},
		"bytes as a key":             {[]byte{appendEntries, m1, 0xc4}, "form"},
		"an array as a key":          {[]byte{installSnapshot, m1, 0x94}, "form"},
		"the reserved byte":          {key(0xc1), "form"},
		"an extension":               {key(0xd4), "form"},
		"a long extension":           {key(0xc9), "form"},
		"no size":                    {[]byte{installSnapshot, m1, 0xa4, 'S', 'i', 'z', 'f', 1}, "form"},
		"no size at all":             {[]byte{installSnapshot, 0x80}, "form"},
		"a size further in":          {append([]byte{installSnapshot, m1, 0xa1, 'k'}, pack(map[string]int{"Size": 1})...), "form"},
		"two sizes":                  {append([]byte{installSnapshot, 0x82}, slices.Repeat([]byte{0xa4, 'S', 'i', 'z', 'e', 1}, 2)...), "form"},
		"a negative size":            {size(0xff), "form"},
		"a negative size, then one":  {append([]byte{installSnapshot, 0x82, 0xa4, 'S', 'i', 'z', 'e', 0xff}, 0xa4, 'S', 'i', 'z', 'e', 1), "form"},
		"a negative size, longer":    {size(0xd1, 0xff, 0xff), "form"},
		"a size beyond int64":        {size(bytes.Repeat([]byte{0xcf, 0xff}, 5)[:9]...), "form"},
		"a nil size":                 {size(0xc0), "form"},
		"a size in letters":          {size(0xa1, '1'), "form"},
		"a size of many":             {size(0x91), "form"},
	}
}

func TestFramesAreRefused(t *testing.T) {
	for name, c := range badFrames() {
		for cut, chunks := range map[string][][]byte{"at once": {c.frame}, "cut": {c.frame[:1], c.frame[1:]}, "after another": {slices.Concat(entries(1, 1), c.frame)}} {
			w := &wire{chunks: slices.DeleteFunc(slices.Clone(chunks), func(b []byte) bool { return len(b) == 0 })}
			r := peer.RaftRequests(w)
			_, err := io.ReadAll(r)
			if err == nil || !strings.Contains(err.Error(), c.want) || !w.closed {
				t.Errorf("%s, %s: %v, closed: %v", name, cut, err, w.closed)
			}
			if n, again := r.Read(make([]byte, 9)); n != 0 || again != err {
				t.Errorf("%s, %s: then %d bytes, %v", name, cut, n, again)
			}
		}
	}
}

// What a length claims is refused when it is there, and not when the bytes are.
func TestNothingPassesAfterALengthBeyondTheBounds(t *testing.T) {
	for _, first := range []byte{0xdb, 0xc6, 0xdd, 0xdf} {
		stream := append([]byte{requestVote, 0x81, 0xa1, 'k'}, header(first, 200<<20)...)
		stream = append(stream, make([]byte, 1000)...)
		got, err := io.ReadAll(iotest.OneByteReader(peer.RaftRequests(&wire{chunks: [][]byte{stream}})))
		if len(got) > 8 || err == nil {
			t.Errorf("%#x: %d bytes pass, %v", first, len(got), err)
		}
	}
}

func TestAnswersAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		frame []byte
		want  string
	}{
		"long error":              {header(0xdb, 200<<20), "too many bytes"},
		"error to the bound":      {pack(strings.Repeat("x", 64<<10-2)), "too many bytes"},
		"error and bytes":         {pack(strings.Repeat("x", 60<<10), map[string][]byte{"k": make([]byte, 5<<10)}), "too many bytes"},
		"many values":             {append(pack(""), header(0xdf, 33)...), "too many values"},
		"no error":                {pack(nil), "form"},
		"a number as the error":   {pack(1), "form"},
		"an array as the answer":  {append(pack(""), 0x90), "form"},
		"levels":                  {append(pack(""), bytes.Repeat([]byte{0x81, 0xa0}, 1e6)...), "nested"},
		"second answer of a kind": {append(pack("", nil, ""), 1), "form"},
	} {
		if _, err := passed(peer.RaftAnswers, c.frame); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of what follows a snapshot, nothing reaches raft's decoder, whose buffer may have asked for more.
func TestConnectionEndsAfterASnapshot(t *testing.T) {
	bomb := append([]byte{appendEntries}, bytes.Repeat([]byte{0x81, 0xa0}, 1e5)...)
	for _, n := range []int{0, 1, 4096, 1 << 20} {
		data := bytes.Repeat([]byte{0xdd}, n)
		want := slices.Concat(entries(2, 10), snapshot(int64(n)), data)
		w := &wire{chunks: [][]byte{slices.Concat(want, bomb)}}
		if got, err := io.ReadAll(peer.RaftRequests(w)); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%d: %d bytes of %d, %v", n, len(got), len(want), err)
		}
	}
}

func TestRefusedFrameNamesItsSender(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody)})
	s := drainTo(p.Listener(peer.ALPNRaft))
	c, err := dialPort(t, a, "b", p, peer.ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	go c.Write([]byte{99})
	there := <-s.conns
	_, err = peer.RaftRequests(there).Read(make([]byte, 10))
	if err == nil || err.Error() != "keyring://prod-1/server/b: raft frame: unknown type" {
		t.Error(err)
	}
	ended(t, c)
	there.Close()
	c.Close()
	p.Close()
}

// stream is a raft.StreamLayer that accepts what is put in.
type stream struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (s stream) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.wrap(c), nil
}

func (s stream) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, errors.New("not here")
}

// feed gives the bytes to raft's transport, until that ends the connection, and returns what
// was allocated meanwhile.
func feed(t *testing.T, wrap func(net.Conn) net.Conn, frame io.Reader) uint64 {
	t.Helper()
	ln := newPipes()
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream{ln, wrap}, MaxPool: 3, Logger: hclog.NewNullLogger(),
	})
	c, err := ln.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{frame}, block)
	io.Copy(io.Discard, c)
	runtime.ReadMemStats(&after)
	trans.Close()
	return after.TotalAlloc - before.TotalAlloc
}

func TestClaimsOfAFrameCostNothing(t *testing.T) {
	const huge = 200 << 20
	claim := func(b byte) io.Reader {
		return bytes.NewReader(append([]byte{requestVote, 0x81, 0xa9, 'C', 'a', 'n', 'd', 'i', 'd', 'a', 't', 'e'}, header(b, huge)...))
	}
	for name, frame := range map[string]io.Reader{
		"200 MiB":                  io.MultiReader(claim(0xdb), io.LimitReader(zeros{}, huge)),
		"an array of that many":    io.MultiReader(claim(0xdd), io.LimitReader(zeros{}, huge)),
		"a million entries":        bytes.NewReader(append(append([]byte{appendEntries, 0x81, 0xa7}, "Entries"...), append(header(0xdd, 1e6), bytes.Repeat([]byte{0x80}, 1e6)...)...)),
		"a million levels of maps": bytes.NewReader(append([]byte{requestVote}, bytes.Repeat([]byte{0x81, 0xa1, 'k'}, 1e6)...)),
	} {
		if n := feed(t, peer.RaftRequests, frame); n > 8<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	w := &wire{}
	r := peer.RaftRequests(w)
	frame, buf := entries(64, 100), make([]byte, 256<<10)
	chunks := make([][]byte, 1)
	if n := testing.AllocsPerRun(100, func() {
		chunks[0] = frame
		w.chunks = chunks
		for len(w.chunks) > 0 {
			if _, err := r.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

// newRequest is what raft decodes a request of that type into.
func newRequest(rpc byte) any {
	switch rpc {
	case appendEntries:
		return new(raft.AppendEntriesRequest)
	case requestVote:
		return new(raft.RequestVoteRequest)
	case installSnapshot:
		return new(raft.InstallSnapshotRequest)
	case timeoutNow:
		return new(raft.TimeoutNowRequest)
	case requestPreVote:
		return new(raft.RequestPreVoteRequest)
	}
	return nil
}

// FuzzFrame holds the ends of frames against those that raft's decoder finds, and the snapshots'
// sizes. A frame that is taken is one that raft's decoder takes to the same end, or refuses.
func FuzzFrame(f *testing.F) {
	for _, b := range realFrames() {
		f.Add(b)
	}
	f.Add(slices.Concat(realFrames()...))
	f.Add(append([]byte{appendEntries}, pack(map[string]any{"Term": 1.5, "Leader": "x", "Entries": []any{map[string]any{"Data": nil, "x": true}}})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		ends, refused := peer.FrameEnds(b)
		from := 0
		for len(b) > from {
			end := len(b) + 1
			if len(ends) > 0 {
				end, ends = ends[0], ends[1:]
			} else if refused != nil {
				return
			}
			v := newRequest(b[from])
			if v == nil {
				t.Fatalf("type %d is taken", b[from])
			}
			r := bytes.NewReader(b[from+1:])
			err := codec.NewDecoder(r, &codec.MsgpackHandle{}).Decode(v)
			at := len(b) - r.Len()
			if s, ok := v.(*raft.InstallSnapshotRequest); ok && err == nil {
				at += int(min(s.Size, int64(len(b)-at)+1)) // at most one beyond the end
			}
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return // so would raft
			}
			if err != nil {
				at = len(b) + 1
			}
			if at != end {
				t.Fatalf("from %d to %d, by raft's decoder to %d: %v", from, end, at, err)
			}
			if b[from] == installSnapshot {
				return
			}
			from = end
		}
	})
}

// BenchmarkFrames compares what the scanner takes for a request with 64 entries with what raft's
// decoder takes for it.
func BenchmarkFrames(b *testing.B) {
	for name, size := range map[string]int{"16 B": 16, "1 KiB": 1 << 10, "16 KiB": 16 << 10} {
		b.Run(name, func(b *testing.B) {
			frame := entries(64, size/2)
			bare := func(c net.Conn) net.Conn { return c }
			skip := func(r io.Reader, buf []byte) { io.ReadFull(r, buf[:len(frame)]) }
			decode := func(r io.Reader, _ []byte) {
				br := bufio.NewReaderSize(r, 256<<10)
				br.ReadByte()
				if err := codec.NewDecoder(br, &codec.MsgpackHandle{}).Decode(new(raft.AppendEntriesRequest)); err != nil {
					b.Fatal(err)
				}
			}
			run := func(wrap func(net.Conn) net.Conn, read func(io.Reader, []byte)) float64 {
				w, chunks, buf := &wire{}, make([][]byte, 1), make([]byte, len(frame))
				r := wrap(w)
				start := time.Now()
				for range b.N {
					chunks[0] = frame
					w.chunks = chunks
					read(r, buf)
				}
				return float64(time.Since(start)) / float64(b.N)
			}
			b.SetBytes(int64(len(frame)))
			unscanned, decoded := run(bare, skip), run(bare, decode)
			b.ResetTimer()
			scanned := run(peer.RaftRequests, skip)
			b.ReportMetric(scanned-unscanned, "ns-scan/op")
			b.ReportMetric((scanned-unscanned)/decoded, "x-decode")
		})
	}
}
