package records

// How records and commands are written, and read with bounds. The package documentation has the formats.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"example.com/keyring"
)

const (
	magic   = "\xc1records"
	version = 1

	kindWrite    = 'w'
	kindSwap     = 's'
	kindSnapshot = 'S'

	flagIf     = 1
	flagDelete = 2

	headLen = len(magic) + 2
)

// Is reports whether b is a command or the start of a snapshot of a Map, of any version. It looks at 8 bytes.
func Is(b []byte) bool { return len(b) >= len(magic) && string(b[:len(magic)]) == magic }

// head begins what is of a kind.
func head(kind byte) []byte { return append([]byte(magic), kind, version) }

// newerError is the error of what a newer build has written.
type newerError struct{ version byte }

func (e newerError) Error() string {
	return fmt.Sprintf("records: written by a newer build, in version %d of the format: this build reads version %d", e.version, version)
}

// checkHead returns the kind of what begins with these bytes.
func checkHead(b []byte) (kind byte, err error) {
	switch {
	case !Is(b) || len(b) < headLen || b[len(magic)+1] == 0:
		return 0, corrupt("package records did not write this")
	case b[len(magic)+1] != version:
		return 0, newerError{b[len(magic)+1]}
	}
	return b[len(magic)], nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("records: %w: %s", keyring.ErrCorrupt, fmt.Sprintf(format, args...))
}

// swap puts one part of a record in the place of an old one.
type swap struct {
	name string
	part int
	old  [sha256.Size]byte
	new  []byte
}

// command is what one entry of the log has: writes or swaps. The parts of the writes are sealed.
type command struct {
	writes []Write
	swaps  []swap
}

func appendBytes[B []byte | string](dst []byte, b B) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func appendParts(dst []byte, parts [][]byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(parts)))
	for _, p := range parts {
		dst = appendBytes(dst, p)
	}
	return dst
}

func appendRecord(dst []byte, r *Record) []byte {
	dst = appendBytes(dst, r.Name)
	dst = binary.AppendUvarint(dst, r.Version)
	dst = appendBytes(dst, r.Meta)
	dst = binary.AppendUvarint(dst, r.plain)
	return appendParts(dst, r.Parts)
}

func uvarintLen(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

// encodedLen is how long appendRecord makes a record.
func encodedLen(r *Record) int {
	n := uvarintLen(r.Version) + uvarintLen(r.plain) + uvarintLen(uint64(len(r.Parts)))
	n += uvarintLen(uint64(len(r.Name))) + len(r.Name) + uvarintLen(uint64(len(r.Meta))) + len(r.Meta)
	for _, p := range r.Parts {
		n += uvarintLen(uint64(len(p))) + len(p)
	}
	return n
}

func encodeWrites(writes []Write) []byte {
	b := binary.AppendUvarint(head(kindWrite), uint64(len(writes)))
	for _, w := range writes {
		flags := uint64(0)
		if w.If != nil {
			flags |= flagIf
		}
		if w.Delete {
			flags |= flagDelete
		}
		b = binary.AppendUvarint(b, flags)
		if w.If != nil {
			b = binary.AppendUvarint(b, *w.If)
		}
		b = appendParts(appendBytes(appendBytes(b, w.Name), w.Meta), w.Parts)
	}
	return b
}

func encodeSwaps(swaps []swap) []byte {
	b := binary.AppendUvarint(head(kindSwap), uint64(len(swaps)))
	for _, s := range swaps {
		b = binary.AppendUvarint(appendBytes(b, s.name), uint64(s.part))
		b = appendBytes(append(b, s.old[:]...), s.new)
	}
	return b
}

// maxPart is the length of the longest plaintext of a record that a swap in an entry of its own has room for.
// A part that is longer would stay under its key.
func maxPart(name string) int {
	return keyring.MaxCommand - len(encodeSwaps([]swap{{name: name}})) - binary.MaxVarintLen32 - keyring.Overhead
}

// decodeCommand reads a command. What it returns shares no memory with b, which raft has.
func decodeCommand(b []byte) (c command, err error) {
	kind, err := checkHead(b)
	if err != nil {
		return c, err
	}
	b = b[headLen:]
	d := &decoder{r: bytes.NewReader(b), left: uint64(len(b))}
	n := d.uvarint()
	if n == 0 {
		d.fail(corrupt("a command without entries"))
	}
	switch kind {
	case kindWrite:
		for ; n > 0 && d.err == nil; n-- {
			c.writes = append(c.writes, d.write())
		}
	case kindSwap:
		for ; n > 0 && d.err == nil; n-- {
			c.swaps = append(c.swaps, d.swap())
		}
	default:
		return c, corrupt("a command of kind %q", kind)
	}
	switch {
	case d.err != nil:
		return command{}, d.err
	case d.left > 0:
		return command{}, corrupt("%d bytes follow the command", d.left)
	}
	return c, nil
}

// byteReader is a bytes.Reader or a bufio.Reader.
type byteReader interface {
	io.Reader
	io.ByteReader
}

// decoder reads no more than left bytes, and after its first error nothing. It takes memory in proportion to
// the bytes that are there, whatever the lengths say.
type decoder struct {
	r    byteReader
	left uint64
	err  error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// cut is the error of what ends too early, or of the reader.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return corrupt("it is cut short")
	}
	return fmt.Errorf("records: read: %w", err)
}

func (d *decoder) uvarint() (n uint64) {
	for shift := 0; d.err == nil; shift += 7 {
		if d.left == 0 {
			d.fail(cut(io.EOF))
			break
		}
		b, err := d.r.ReadByte()
		if err != nil {
			d.fail(cut(err))
			break
		}
		d.left--
		if shift == 63 && b > 1 || shift > 0 && b == 0 {
			d.fail(corrupt("a varint is too long"))
			break
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
	return 0
}

// chunk is how many bytes are made room for before they are there.
const chunk = 64 << 10

func (d *decoder) fixed(n uint64) []byte {
	if d.err == nil && n > d.left {
		d.fail(cut(io.EOF))
	}
	if d.err != nil || n == 0 {
		return nil
	}
	d.left -= n
	var err error
	if n <= chunk {
		b := make([]byte, n)
		if _, err = io.ReadFull(d.r, b); err == nil {
			return b
		}
	} else {
		var buf bytes.Buffer
		if _, err = io.CopyN(&buf, d.r, int64(n)); err == nil {
			return bytes.Clone(buf.Bytes())
		}
	}
	d.fail(cut(err))
	return nil
}

func (d *decoder) bytes(most uint64) []byte {
	n := d.uvarint()
	if n > most {
		d.fail(corrupt("%d bytes where at most %d may be", n, most))
	}
	return d.fixed(n)
}

func (d *decoder) name() string {
	name := string(d.bytes(MaxName))
	if name == "" {
		d.fail(corrupt("a record without a name"))
	}
	return name
}

// parts reads as many parts as a record may have, and returns nil for none.
func (d *decoder) parts() (parts [][]byte) {
	n := d.uvarint()
	if n > MaxParts {
		d.fail(corrupt("a record of %d parts", n))
	}
	if d.err != nil || n == 0 {
		return nil
	}
	parts = make([][]byte, n)
	for i := range parts {
		parts[i] = d.bytes(MaxBytes)
	}
	return parts
}

func (d *decoder) write() (w Write) {
	flags := d.uvarint()
	if flags&flagIf != 0 {
		n := d.uvarint()
		w.If = &n
	}
	w.Delete = flags&flagDelete != 0
	w.Name, w.Meta, w.Parts = d.name(), d.bytes(MaxBytes), d.parts()
	if flags > flagIf|flagDelete {
		d.fail(corrupt("flags %d", flags))
	}
	if d.err == nil {
		if err := w.check(); err != nil {
			d.fail(corrupt("%v", err))
		}
	}
	return w
}

func (d *decoder) swap() (s swap) {
	s.name = d.name()
	part := d.uvarint()
	if part >= MaxParts {
		d.fail(corrupt("part %d of a record", part))
	}
	s.part = int(part % MaxParts)
	copy(s.old[:], d.fixed(sha256.Size))
	s.new = d.bytes(MaxBytes)
	return s
}

// record reads a record of a snapshot, and checks that it is one.
func (d *decoder) record() *Record {
	r := &Record{Name: d.name(), Version: d.uvarint(), Meta: d.bytes(MaxBytes), plain: d.uvarint(), Parts: d.parts()}
	if d.err != nil {
		return r
	}
	if r.Version == 0 || r.plain>>len(r.Parts) != 0 || r.tooLong() {
		d.fail(corrupt("record %q has version 0, more plaintexts than parts, or too many bytes", r.Name))
	}
	for i := range r.Parts {
		if r.plain>>i&1 == 0 && r.KeyID(i) == (keyring.KeyID{}) {
			d.fail(corrupt("part %d of record %q is no ciphertext", i, r.Name))
		}
	}
	return r
}

func (r *Record) tooLong() bool {
	n := len(r.Name) + len(r.Meta)
	for _, p := range r.Parts {
		n += len(p)
	}
	return n > MaxBytes
}
