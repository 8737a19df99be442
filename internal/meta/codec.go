package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Build says what a build of the keyring knows. Servers of several builds may share a log. So an entry or a snapshot
// carries exactly the lowest version that has everything in it, and all builds that can read it write the same
// bytes and refuse the same.
type Build struct {
	Version int // the newest it reads and writes
	// Command and Ring return the lowest version that has the command, or the ring, with every member
	// that is set in it. Nil means version 1 for all.
	Command func(*Command) int
	Ring    func(*Ring) int
	Files   int // the newest version of key files that it reads; zero is 1
}

// ReadsFiles is Files, with 1 for zero.
func (b Build) ReadsFiles() int { return max(1, b.Files) }

// ErrMalformed is matched by errors about bytes that are not an entry or a snapshot.
var ErrMalformed = errors.New("malformed keyring metadata")

// ErrVersion is matched by errors about bytes of a version that the build does not know yet.
var ErrVersion = errors.New("unknown version")

// Entry is what one raft log entry carries: commands that are applied in order, and
// either all or none of them.
type Entry struct {
	Version  int       `json:"version"`      // encoding sets it
	By       string    `json:"by,omitempty"` // who asked; empty if the keyring acts of its own accord
	Commands []Command `json:"commands"`
}

// Needs returns the lowest version that has all of the commands.
func (b Build) Needs(cmds ...Command) int {
	v := 1
	for i := range cmds {
		if b.Command != nil {
			v = max(v, b.Command(&cmds[i]))
		}
	}
	return v
}

// Encode returns the log entry of this build. See Build.EncodeEntry.
func (e Entry) Encode() ([]byte, error) { return This.EncodeEntry(e) }

// DecodeEntry reads a log entry as this build does.
func DecodeEntry(data []byte) (Entry, error) { return This.DecodeEntry(data) }

// EncodeEntry returns the log entry, or says what is wrong with it. Times must be in UTC.
func (b Build) EncodeEntry(e Entry) ([]byte, error) {
	e.Version = b.Needs(e.Commands...)
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode keyring command: %w", err)
	}
	if _, err := b.DecodeEntry(data); err != nil {
		return nil, err
	}
	return data, nil
}

// DecodeEntry reads a log entry. An error matches ErrMalformed or ErrVersion.
func (b Build) DecodeEntry(data []byte) (Entry, error) {
	var e Entry
	canonical := func() bool {
		again, err := json.Marshal(e)
		return err == nil && bytes.Equal(again, data)
	}
	if err := b.decode(data, &e, &e.Version, canonical); err != nil {
		return Entry{}, err
	}
	if err := exactly(e.Version, b.Needs(e.Commands...)); err != nil {
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

func (b Build) ringNeeds(r *Ring) int {
	if b.Ring == nil {
		return 1
	}
	return b.Ring(r)
}

// Encode returns the ring's snapshot of this build. See Build.EncodeRing.
func (r *Ring) Encode() ([]byte, error) {
	var b bytes.Buffer
	if err := This.EncodeRing(&b, r); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Decode reads a snapshot as this build does.
func Decode(data []byte) (*Ring, error) { return This.DecodeRing(data) }

// EncodeRing writes the snapshot of the ring, which is the JSON of snapshot, one key at a time: otherwise it would be
// in memory twice. Equal rings have equal snapshots, in every build that can write them.
func (b Build) EncodeRing(w writer, r *Ring) error {
	return encodeRing(w, b.ringNeeds(r), r)
}

func encodeRing(w writer, version int, r *Ring) error {
	e := encoder{w: w}
	first := snapshot{Version: version, Ring: Ring{Cluster: r.Cluster}}
	e.open(first)
	list(&e, "keys", r.Keys)
	list(&e, "removed", r.Removed)
	list(&e, "servers", r.Servers)
	if r.Backup != (Backup{}) {
		e.text(`,"backup":`)
		e.value(r.Backup)
	}
	list(&e, "joinTokens", r.JoinTokens)
	list(&e, "nonvoters", r.Nonvoters)
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

// DecodeRing reads a snapshot and checks it. An error matches ErrMalformed or ErrVersion.
func (b Build) DecodeRing(data []byte) (*Ring, error) {
	var s snapshot
	canonical := func() bool {
		same := sameAs{data}
		return encodeRing(&same, s.Version, &s.Ring) == nil && len(same.rest) == 0
	}
	if err := b.decode(data, &s, &s.Version, canonical); err != nil {
		return nil, err
	}
	if err := exactly(s.Version, b.ringNeeds(&s.Ring)); err != nil {
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

// decode unmarshals data into v and accepts it only if v encodes to the same bytes. That one
// rule refuses unknown, repeated and misspelt members, trailing bytes and other spellings
// of the same value, so that no two servers can read one entry in two ways.
func (b Build) decode(data []byte, v any, version *int, canonical func() bool) error {
	err := json.Unmarshal(data, v)
	if *version > b.Version { // it stands first, so it is known whatever follows
		return fmt.Errorf("%w %d, this build reads up to version %d", ErrVersion, *version, b.Version)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !canonical() {
		return fmt.Errorf("%w: not in the canonical form, or with members this build does not know", ErrMalformed)
	}
	return nil
}

// exactly requires the version that is needed. With a lower one, builds that it names would refuse the rest; with a
// higher one, builds that understand the rest would refuse it.
func exactly(version, needed int) error {
	if version != needed {
		return fmt.Errorf("%w: version %d, and what it has is of version %d", ErrMalformed, version, needed)
	}
	return nil
}

// The elements of lists are checked while they are read, so that a long list of short forgeries is refused at the
// first of them and never grows to many times its size.

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

// UnmarshalJSON reads a join token. Ring.Check does the rest.
func (t *JoinToken) UnmarshalJSON(b []byte) error {
	type plain JoinToken
	if err := json.Unmarshal(b, (*plain)(t)); err != nil {
		return err
	}
	return nonzero("join token ID", t.ID)
}

// utc reports whether t has the one form that times have in entries: UTC, or zero.
func utc(t time.Time) bool { return t.IsZero() || t.Location() == time.UTC }
