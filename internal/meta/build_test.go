package meta_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"example.com/keyring/internal/meta"
)

// next is the build after this one, in which backups came to be.
var next = meta.Build{
	Version: meta.Version + 1,
	Command: func(c *meta.Command) int {
		if c.Backup != nil {
			return meta.Version + 1
		}
		return meta.This.Command(c)
	},
	Ring: func(r *meta.Ring) int {
		if r.Backup != (meta.Backup{}) {
			return meta.Version + 1
		}
		return meta.This.Ring(r)
	},
}

func TestEntryCarriesTheLowestVersion(t *testing.T) {
	for _, tt := range []struct {
		cmds []meta.Command
		want int
	}{
		{everyCommand()[:1], 1},
		{secondCommands()[:1], 2},
		{thirdCommands()[:1], 3},
		{[]meta.Command{backup(1)}, 4},
		{[]meta.Command{everyCommand()[0], backup(1), secondCommands()[0]}, 4},
	} {
		b := must(next.EncodeEntry(meta.Entry{Commands: tt.cmds}))
		e, err := next.DecodeEntry(b)
		if err != nil || e.Version != tt.want || next.Needs(tt.cmds...) != tt.want || !reflect.DeepEqual(e.Commands, tt.cmds) {
			t.Errorf("%s: version %d, want %d; %v", b, e.Version, tt.want, err)
		}
		if _, err := meta.DecodeEntry(b); (err == nil) != (tt.want < next.Version) {
			t.Errorf("%s: this build: %v", b, err)
		}
	}
}

// encodeAs is the snapshot of a ring as a build writes it.
func encodeAs(t *testing.T, b meta.Build, r *meta.Ring) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := b.EncodeRing(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSnapshotCarriesTheLowestVersion(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	old := encode(t, h.ring)
	if b := encodeAs(t, next, h.ring); !bytes.Equal(b, old) {
		t.Errorf("a newer build writes of the same ring\n%s\nthis one\n%s", b, old)
	}
	if _, err := next.DecodeRing(old); err != nil {
		t.Errorf("a newer build: %v", err)
	}
	h.do(backup(1))
	b := encodeAs(t, next, h.ring)
	if got, err := next.DecodeRing(b); err != nil || !reflect.DeepEqual(got, h.ring) {
		t.Errorf("%s: %v, %v", b, got, err)
	}
	if got, err := meta.Decode(b); !errors.Is(err, meta.ErrVersion) || got != nil {
		t.Errorf("this build: %v, %v", got, err)
	}
}

// TestVersionIsExactly: what one build refuses for its version, no other may take with another one.
func TestVersionIsExactly(t *testing.T) {
	change := func(b []byte, from, to string) []byte {
		return bytes.Replace(b, []byte(`"version":`+from), []byte(`"version":`+to), 1)
	}
	first := must(encodeEntry(everyCommand()[0]))
	second := must(next.EncodeEntry(meta.Entry{Commands: []meta.Command{backup(1)}}))
	h := begin(t)
	ring := encode(t, h.ring)
	h.do(backup(1))
	newer := encodeAs(t, next, h.ring)
	for name, err := range map[string]error{
		"entry too high":    errOf(next.DecodeEntry(change(first, "1", "2"))),
		"entry too low":     errOf(next.DecodeEntry(change(second, "4", "3"))),
		"entry of none":     errOf(next.DecodeEntry(change(second, "4", "0"))),
		"snapshot too high": errOf(next.DecodeRing(change(ring, "1", "2"))),
		"snapshot too low":  errOf(next.DecodeRing(change(newer, "4", "3"))),
	} {
		if !errors.Is(err, meta.ErrMalformed) || errors.Is(err, meta.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestNewerVersionIsNamed(t *testing.T) {
	for _, tt := range []struct {
		build meta.Build
		text  string
		want  string
	}{
		{meta.This, `{"version":4,"commands":[{"enlarge":{"id":7}}],"more":[]}`, "version 4, this build reads up to version 3"},
		{next, `{"version":5,"commands":[{"enlarge":{"id":7}}]}`, "version 5, this build reads up to version 4"},
		{next, `{"version":5,"keys":[{}]}`, "version 5, this build reads up to version 4"},
	} {
		_, entry := tt.build.DecodeEntry([]byte(tt.text))
		_, ring := tt.build.DecodeRing([]byte(tt.text))
		for _, err := range []error{entry, ring} {
			if !errors.Is(err, meta.ErrVersion) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.text, err, tt.want)
			}
		}
	}
}
