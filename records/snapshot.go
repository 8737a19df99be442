package records

// Snapshots of a Map.

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// Snapshot implements raft.FSM. It fails if the Map has not applied some entry, which a newer build wrote:
// raft would drop that entry from its log.
func (m *Map) Snapshot() (raft.FSMSnapshot, error) {
	v := m.View()
	return snapshot{v}, v.complete()
}

// complete is an error if the view lacks something that a newer build has written.
func (v View) complete() error {
	if v.newer != nil {
		return fmt.Errorf("no snapshot: %w", v.newer)
	}
	return nil
}

type snapshot struct{ view View }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.view.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

// WriteTo writes the view as a section of a snapshot, which RestoreFrom reads. Equal views give equal bytes.
// If the Map has not applied an entry of a newer build, WriteTo writes nothing and returns an error.
func (v View) WriteTo(w io.Writer) (n int64, err error) {
	if err := v.complete(); err != nil {
		return 0, err
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	index := binary.AppendUvarint(nil, v.index)
	buf := binary.BigEndian.AppendUint64(head(kindSnapshot), uint64(len(index))+v.size)
	buf = append(buf, index...)
	flush := func() bool {
		var k int
		k, err = out.Write(buf)
		n, buf = n+int64(k), buf[:0]
		return err == nil
	}
	v.byName.Scan(func(r *Record) bool {
		buf = appendRecord(buf, r)
		return len(buf) < chunk || flush()
	})
	if err != nil || !flush() {
		return n, err
	}
	k, err := w.Write(sum.Sum(nil))
	return n + int64(k), err
}

// Restore implements raft.FSM, for a Map that is all of a host's FSM.
func (m *Map) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	s, err := readSection(rc)
	if err != nil {
		return err
	}
	switch n, err := io.ReadFull(rc, make([]byte, 1)); {
	case n > 0:
		return corrupt("something follows the snapshot")
	case err != io.EOF:
		return fmt.Errorf("records: read: %w", err)
	}
	m.replace(s)
	return nil
}

// RestoreFrom reads a section that View.WriteTo has written, and nothing after it, and replaces all records
// of the Map. It is for the Restore of a host that has more in its snapshots. After an error the Map is
// unchanged.
func (m *Map) RestoreFrom(r io.Reader) error {
	s, err := readSection(r)
	if err == nil {
		m.replace(s)
	}
	return err
}

// RestorePlain replaces all records of the Map by records in the clear, in any order, with the rules of
// SetPlain. It is for the Restore of a host whose old snapshots have such records; nil is for old snapshots
// without records. If all yields an error or two records with the same name, RestorePlain returns an error
// and the Map is unchanged.
func (m *Map) RestorePlain(all iter.Seq2[Record, error]) error {
	s := newState()
	if all == nil {
		all = func(func(Record, error) bool) {}
	}
	for r, err := range all {
		if err != nil {
			return err
		}
		n, err := plainRecord(r)
		if err != nil {
			return err
		}
		if _, twice := s.Get(n.Name); twice {
			return fmt.Errorf("records: two records %q", n.Name)
		}
		s.set(n)
	}
	m.replace(s)
	return nil
}

// replace puts another state in the place of the present one.
func (m *Map) replace(s state) {
	m.change(func() any { m.now = s; return nil })
}

// readSection reads a section to its end, and checks all of it.
func readSection(r io.Reader) (state, error) {
	s, sum := newState(), sha256.New()
	hashed := io.TeeReader(r, sum)
	h := make([]byte, headLen+8)
	if _, err := io.ReadFull(hashed, h); err != nil {
		return s, cut(err)
	}
	length := binary.BigEndian.Uint64(h[headLen:])
	switch kind, err := checkHead(h[:headLen]); {
	case err != nil:
		return s, err
	case kind != kindSnapshot:
		return s, corrupt("it is of kind %q, not a snapshot", kind)
	case length > math.MaxInt64:
		return s, corrupt("a snapshot of %d bytes", length)
	}
	d := &decoder{r: bufio.NewReaderSize(io.LimitReader(hashed, int64(length)), chunk), left: length}
	s.index = d.uvarint()
	before := ""
	for d.err == nil && d.left > 0 {
		n := d.record()
		if d.err == nil && strings.Compare(n.Name, before) <= 0 {
			d.fail(corrupt("record %q follows %q", n.Name, before))
		}
		if d.err == nil {
			s.load(n)
			before = n.Name
		}
	}
	if d.err != nil {
		return s, d.err
	}
	want := sum.Sum(nil)
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, got); err != nil {
		return s, cut(err)
	}
	if !slices.Equal(got, want) {
		return s, corrupt("the checksum does not fit the snapshot")
	}
	return s, nil
}
