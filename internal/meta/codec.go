package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Version is the version of log entries and snapshots that this package writes and reads.
const Version = 1

// ErrMalformed is matched by errors about bytes that are no entry or snapshot of this Version.
var ErrMalformed = errors.New("malformed keyring metadata")

// Entry is what one raft log entry carries: commands that are applied in order, and
// either all or none of them.
type Entry struct {
	Version  int       `json:"version"`      // Encode sets it
	By       string    `json:"by,omitempty"` // who asked; empty if the keyring acts of its own accord
	Commands []Command `json:"commands"`
}

// Encode returns the log entry, or says what is wrong with it. Times must be in UTC.
func (e Entry) Encode() ([]byte, error) {
	e.Version = Version
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode keyring command: %w", err)
	}
	if _, err := DecodeEntry(b); err != nil {
		return nil, err
	}
	return b, nil
}

// DecodeEntry reads a log entry. An error matches ErrMalformed.
func DecodeEntry(b []byte) (Entry, error) {
	var e Entry
	canonical := func() bool {
		again, err := json.Marshal(e)
		return err == nil && bytes.Equal(again, b)
	}
	if err := decode(b, &e, func() int { return e.Version }, canonical); err != nil {
		return Entry{}, err
	}
	if len(e.Commands) == 0 {
		return Entry{}, fmt.Errorf("%w: no command", ErrMalformed)
	}
	if len(e.By) > MaxActor || !utf8.ValidString(e.By) {
		return Entry{}, fmt.Errorf("%w: who asked is longer than %d bytes, or not UTF-8", ErrMalformed, MaxActor)
	}
	return e, nil
}

type snapshot struct {
	Version int `json:"version"`
	Ring
}

// Encode returns the snapshot of the ring. Equal rings have equal snapshots.
func (r *Ring) Encode() ([]byte, error) {
	var b bytes.Buffer
	if err := r.EncodeTo(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// EncodeTo writes the snapshot of the ring, the JSON of snapshot, one key at a time: as a whole it would
// be in memory twice.
func (r *Ring) EncodeTo(w writer) error {
	e := encoder{w: w}
	first := snapshot{Version: Version, Ring: Ring{Cluster: r.Cluster}}
	e.open(first)
	list(&e, "keys", r.Keys)
	list(&e, "removed", r.Removed)
	list(&e, "servers", r.Servers)
	if r.Backup != (Backup{}) {
		e.text(`,"backup":`)
		e.value(r.Backup)
	}
	e.text("}")
	if e.err != nil {
		return fmt.Errorf("encode keyring snapshot: %w", e.err)
	}
	return nil
}

// writer is io.Writer, without a package that does I/O.
type writer interface {
	Write(b []byte) (n int, err error)
}

// encoder writes JSON piece by piece. Its first error stays.
type encoder struct {
	w   writer
	err error
}

func (e *encoder) text(s string) { e.write([]byte(s)) }

func (e *encoder) write(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

func (e *encoder) marshal(v any) (b []byte) {
	if e.err == nil {
		b, e.err = json.Marshal(v)
	}
	return b
}

func (e *encoder) value(v any) { e.write(e.marshal(v)) }

// open writes an object without its end.
func (e *encoder) open(v any) { e.write(bytes.TrimSuffix(e.marshal(v), []byte("}"))) }

// list writes a member that is a list, unless it is empty.
func list[T any](e *encoder, name string, all []T) {
	for i, v := range all {
		if i == 0 {
			e.text(`,"` + name + `":[`)
		} else {
			e.text(",")
		}
		e.value(v)
	}
	if len(all) > 0 {
		e.text("]")
	}
}

// Decode reads a snapshot and checks it. An error matches ErrMalformed.
func Decode(b []byte) (*Ring, error) {
	var s snapshot
	canonical := func() bool {
		same := sameAs{b}
		return s.EncodeTo(&same) == nil && len(same.rest) == 0
	}
	if err := decode(b, &s, func() int { return s.Version }, canonical); err != nil {
		return nil, err
	}
	if err := s.Ring.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	s.Ring.index()
	return &s.Ring, nil
}

// sameAs is a writer that takes these bytes and no others.
type sameAs struct{ rest []byte }

func (s *sameAs) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(s.rest, b) {
		return 0, ErrMalformed
	}
	s.rest = s.rest[len(b):]
	return len(b), nil
}

// decode unmarshals b into v and accepts it only if v encodes to the same bytes. That one
// rule refuses unknown, repeated and misspelt members, trailing bytes and other spellings
// of the same value, so that no two servers can read one entry in two ways.
func decode(b []byte, v any, version func() int, canonical func() bool) error {
	err := json.Unmarshal(b, v)
	if got := version(); got != Version && (got != 0 || err == nil) { // it stands first, so it is known whatever follows
		return fmt.Errorf("%w: version %d, this build reads %d", ErrMalformed, got, Version)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !canonical() {
		return fmt.Errorf("%w: not in the canonical form, or with members this build does not know", ErrMalformed)
	}
	return nil
}

// What lists are made of checks itself while it is read, so that a long list of short
// forgeries is refused at the first of them and never grows to many times its size.

// UnmarshalJSON reads a command and validates it.
func (c *Command) UnmarshalJSON(b []byte) error {
	type plain Command
	if err := json.Unmarshal(b, (*plain)(c)); err != nil {
		return err
	}
	return c.validate()
}

// UnmarshalJSON reads a key. Ring.Check does the rest.
func (k *Key) UnmarshalJSON(b []byte) error {
	type plain Key
	if err := json.Unmarshal(b, (*plain)(k)); err != nil {
		return err
	}
	return errors.Join(nonzero("key ID", k.ID), nonzero("check value", k.Check))
}

// UnmarshalJSON reads a tombstone. Ring.Check does the rest.
func (t *Tombstone) UnmarshalJSON(b []byte) error {
	type plain Tombstone
	if err := json.Unmarshal(b, (*plain)(t)); err != nil {
		return err
	}
	return nonzero("key ID", t.ID)
}

// UnmarshalJSON reads a server.
func (s *Server) UnmarshalJSON(b []byte) error {
	type plain Server
	if err := json.Unmarshal(b, (*plain)(s)); err != nil {
		return err
	}
	return nonzero("keystore ID", s.Keystore)
}

// utc reports whether t has the one form that times have in entries: UTC, or zero.
func utc(t time.Time) bool { return t.IsZero() || t.Location() == time.UTC }
