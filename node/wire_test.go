package node_test

import (
	"errors"
	"fmt"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/port"
	"example.com/keyring/node"
)

// TestWireErrorsKeepTheirCodes: servers of several builds forward to each other.
func TestWireErrorsKeepTheirCodes(t *testing.T) {
	want := []struct {
		code byte
		err  error
	}{
		{1, keyring.ErrNotLeader}, {2, keyring.ErrNotReady}, {3, keyring.ErrUnknownKey}, {4, keyring.ErrKeyMissing},
		{5, keyring.ErrDecrypt}, {6, keyring.ErrTooLong}, {7, keyring.ErrNotDurable}, {8, keyring.ErrClosed},
		{9, keyring.ErrNoData}, {10, keyring.ErrNotMember}, {11, port.ErrIDInUse},
		{12, keyring.ErrUnknownBackup}, {13, keyring.ErrCorrupt},
	}
	if len(node.WireErrors) != len(want) {
		t.Errorf("%d codes, want %d", len(node.WireErrors), len(want))
	}
	for _, w := range want {
		b := node.WireErrors.EncodeReply(nil, fmt.Errorf("why: %w", w.err))
		if len(b) == 0 || b[0] != w.code {
			t.Errorf("%v has the code %v, want %d", w.err, b, w.code)
		}
		_, err := node.WireErrors.DecodeReply(append([]byte{w.code}, "why"...))
		if !errors.Is(err, w.err) || w.code == 5 && err != keyring.ErrDecrypt {
			t.Errorf("%d is %v, want %v", w.code, err, w.err)
		}
	}
	if b := node.WireErrors.EncodeReply([]byte("out"), nil); string(b) != "\x00out" {
		t.Errorf("success is %q", b)
	}
	if b := node.WireErrors.EncodeReply(nil, errors.New("text")); string(b) != "\xfftext" {
		t.Errorf("another error is %q", b)
	}
	if _, err := node.WireErrors.DecodeReply([]byte("\x63of a newer build")); err == nil || err.Error() != "from the leader: of a newer build" {
		t.Errorf("%v", err)
	}
}

// TestForwardedErrorSaysItsKindOnce: the leader's text has it already, most often.
func TestForwardedErrorSaysItsKindOnce(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("remove server s9: %w: the members are s1", keyring.ErrNotMember), "from the leader: remove server s9: not a member of the cluster: the members are s1"},
		{keyring.ErrNotMember, "from the leader: not a member of the cluster"},
	} {
		_, err := node.WireErrors.DecodeReply(node.WireErrors.EncodeReply(nil, tt.err))
		if !errors.Is(err, keyring.ErrNotMember) || err.Error() != tt.want {
			t.Errorf("%q, want %q", err, tt.want)
		}
	}
	_, err := node.WireErrors.DecodeReply([]byte("\x0awithout it"))
	if want := "from the leader: not a member of the cluster: without it"; !errors.Is(err, keyring.ErrNotMember) || err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
