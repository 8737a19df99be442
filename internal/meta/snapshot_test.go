package meta_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"testing"
	"testing/iotest"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/meta"
)

// framed is a section as the package doc frames it.
func framed(size uint64, section []byte) []byte {
	sum := sha256.Sum256(section)
	head := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), size)
	return append(append(head, sum[:]...), section...)
}

// writeSnapshot is the keyring's part of a snapshot.
func writeSnapshot(t testing.TB, r *meta.Ring) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := meta.This.WriteSnapshot(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSnapshotIsAsSpecified: a file that this code did not make, behind a head that the test makes.
func TestSnapshotIsAsSpecified(t *testing.T) {
	for _, file := range []string{"testdata/snapshot.json", "testdata/v2/snapshot.json"} {
		section, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		section = bytes.TrimSuffix(section, []byte("\n"))
		want := framed(uint64(len(section)), section)
		s, err := meta.This.ReadSnapshot(bytes.NewReader(want))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if got := writeSnapshot(t, s.Ring); !bytes.Equal(got, want) || !bytes.Equal(s.Head, want) {
			t.Errorf("%s: read\n%s\nwritten\n%s\nwant\n%s", file, s.Head, got, want)
		}
	}
}

// TestReadSnapshotReadsNoByteOfTheHosts, however much the reader has and however short its reads are.
func TestReadSnapshotReadsNoByteOfTheHosts(t *testing.T) {
	ring := recent(t)
	part := writeSnapshot(t, ring)
	for _, host := range []string{"", "h", "the host's", "keyring-snapshot"} {
		all := bytes.NewReader(append(bytes.Clone(part), host...))
		for _, r := range []io.Reader{all, iotest.OneByteReader(all)} {
			all.Seek(0, io.SeekStart)
			s, err := meta.This.ReadSnapshot(r)
			if err != nil || !reflect.DeepEqual(s.Ring, ring) || !bytes.Equal(s.Head, part) || all.Len() != len(host) {
				t.Fatalf("%q: %d bytes are left; %v", host, all.Len(), err)
			}
			if rest, err := io.ReadAll(s.Host); err != nil || string(rest) != host {
				t.Errorf("the host reads %q, %v; want %q", rest, err, host)
			}
		}
	}
}

// TestSnapshotWithoutTheKeyringsPartIsTheHosts, of any length.
func TestSnapshotWithoutTheKeyringsPartIsTheHosts(t *testing.T) {
	text := bytes.Repeat([]byte("keyring-snapsho-"), 10)
	for n := range text {
		s, err := meta.This.ReadSnapshot(iotest.HalfReader(bytes.NewReader(text[:n])))
		if err != nil || s.Ring != nil || !bytes.HasPrefix(text[:n], s.Head) {
			t.Fatalf("%d bytes: %+v, %v", n, s, err)
		}
		if rest, err := io.ReadAll(s.Host); err != nil || !bytes.Equal(rest, text[:n]) {
			t.Errorf("%d bytes: the host reads %q, %v", n, rest, err)
		}
	}
}

// TestReadSnapshotRefusesWhatWasNotWritten: every bit, every cut, every length.
func TestReadSnapshotRefusesWhatWasNotWritten(t *testing.T) {
	part := writeSnapshot(t, recent(t))
	section := part[meta.SnapshotHead:]
	refused := func(what string, b []byte) {
		t.Helper()
		s, err := meta.This.ReadSnapshot(bytes.NewReader(b))
		if s.Ring != nil || err == nil && bytes.HasPrefix(b, []byte(meta.SnapshotMagic)) {
			t.Errorf("%s: %+v", what, s)
		}
		if err != nil && !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	size := uint64(len(section))
	for _, wrong := range []uint64{0, size - 1, size + 1, 1 << 30, 1<<30 + 1, 1 << 63, 1<<64 - 1} {
		refused(fmt.Sprintf("a length of %d", wrong), framed(wrong, section))
	}
	refused("null", framed(4, []byte("null")))
	refused("another ring", framed(2, []byte("{}")))
	for i := range part {
		refused(fmt.Sprintf("the first %d bytes", i), part[:i])
		b := bytes.Clone(part)
		b[i] ^= 1 << (i % 8)
		refused(fmt.Sprintf("bit %d of byte %d", i%8, i), b)
	}
}

// TestSnapshotOfANewerBuildIsNamed: it is no damage.
func TestSnapshotOfANewerBuildIsNamed(t *testing.T) {
	section := []byte(`{"version":4}`)
	_, err := meta.This.ReadSnapshot(bytes.NewReader(framed(uint64(len(section)), section)))
	if !errors.Is(err, meta.ErrVersion) || errors.Is(err, meta.ErrMalformed) {
		t.Errorf("%v", err)
	}
}

var errDisk = errors.New("disk")

// TestErrorsOfReaderAndWriterArePassedOn wherever they come.
func TestErrorsOfReaderAndWriterArePassedOn(t *testing.T) {
	ring := recent(t)
	part := writeSnapshot(t, ring)
	for n := range part {
		_, err := meta.This.ReadSnapshot(io.MultiReader(bytes.NewReader(part[:n]), iotest.ErrReader(errDisk)))
		if !errors.Is(err, errDisk) || errors.Is(err, meta.ErrMalformed) {
			t.Errorf("read after %d bytes: %v", n, err)
		}
	}
	if err := meta.This.WriteSnapshot(failing{}, ring); !errors.Is(err, errDisk) {
		t.Errorf("write: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errDisk }

// TestReadSnapshotAllocatesNoMoreThanThereIs: the length is what a head says.
func TestReadSnapshotAllocatesNoMoreThanThereIs(t *testing.T) {
	for _, size := range []uint64{1 << 29, 1 << 30, 1<<64 - 1} {
		b := framed(size, []byte(`{"version":1`))
		boundedtest.Memory(t, len(b), 1<<20, 4, func() {
			if _, err := meta.This.ReadSnapshot(bytes.NewReader(b)); err == nil {
				t.Errorf("a section said to have %d bytes", size)
			}
		})
	}
}

// TestLengthOfASectionIsBounded, before any of it is read.
func TestLengthOfASectionIsBounded(t *testing.T) {
	for size, want := range map[uint64]error{1 << 30: errDisk, 1<<30 + 1: meta.ErrMalformed, 1<<64 - 1: meta.ErrMalformed} {
		r := io.MultiReader(bytes.NewReader(framed(size, nil)), iotest.ErrReader(errDisk))
		if _, err := meta.This.ReadSnapshot(r); !errors.Is(err, want) {
			t.Errorf("a length of %d: %v, want %v", size, err, want)
		}
	}
}
