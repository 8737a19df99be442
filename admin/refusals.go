package admin

// Which status a refusal has. The library has no errors to tell wrong input, and what the members of now do
// not allow, from what went wrong: both are looked at here. Every call that the checks are for may be made
// twice, so none has an unknown outcome.

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

type (
	// unknown is an error after which the request may have had an effect.
	unknown struct{ error }
	// notBegun is an error after which it certainly had none.
	notBegun struct{ error }
	// badRequest is an error of the one who asked.
	badRequest struct{ error }
	// tooLarge is one because of a body.
	tooLarge struct{ error }
	// conflict is an error because of how things are, if it is not one of those that have a status.
	conflict struct{ error }
	// missing is an error because there is nothing of that ID.
	missing struct{ error }
)

func (u unknown) Unwrap() error  { return u.error }
func (n notBegun) Unwrap() error { return n.error }
func (c conflict) Unwrap() error { return c.error }
func (m missing) Unwrap() error  { return m.error }

// statusOf is the status that an error has. What came of a request whose status is 500 is not known. One that
// has 503 may be sent again: it has had no effect, or none that is had twice, as the removal of a key.
func statusOf(err error) int {
	switch {
	case errors.As(err, new(unknown)):
		return http.StatusInternalServerError
	case errors.As(err, new(tooLarge)):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, new(badRequest)), errors.Is(err, keyring.ErrUnknownKey):
		return http.StatusBadRequest
	case errors.Is(err, keyring.ErrNotMember):
		return http.StatusNotFound
	case errors.Is(err, keyring.ErrNotLeader), errors.Is(err, keyring.ErrNoLeader), errors.Is(err, keyring.ErrNotReady), errors.Is(err, keyring.ErrKeyMissing):
		return http.StatusServiceUnavailable
	case errors.As(err, new(conflict)):
		return http.StatusConflict
	case errors.As(err, new(missing)):
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// checkID says what is wrong with the ID of a server.
func checkID(id raft.ServerID) error {
	text := string(id)
	switch {
	case text == "" || len(text) > 255 || !utf8.ValidString(text):
		return badRequest{fmt.Errorf("a server ID of %d bytes, want 1 to 255 of UTF-8", len(text))}
	case strings.TrimSpace(text) != text || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return badRequest{fmt.Errorf("server ID %q begins or ends with a space, or has a character that can't be printed", text)}
	}
	return nil
}

// checkAddr says what is wrong with the address of a server.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || len(addr) > 255 {
		return badRequest{fmt.Errorf("address %.300q: want host:port, of at most 255 bytes", addr)}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return badRequest{fmt.Errorf("address %q: port %q, want 1 to 65535", addr, port)}
	}
	ip, err := netip.ParseAddr(host)
	name := err != nil && strings.ContainsFunc(host, unicode.IsLetter) && !strings.ContainsFunc(host, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.", r)
	})
	if err == nil && (ip.Unmap().IsUnspecified() || ip.IsMulticast()) || err != nil && !name {
		return badRequest{fmt.Errorf("address %q: host %q is not the name or the IP address of one server", addr, host)}
	}
	return nil
}

// checkTokenID says what is wrong with the ID of a join token. It may be the token itself, a secret, so it is
// not in the error.
func checkTokenID(id string) error {
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 {
		return badRequest{errors.New("not the ID of a join token, which has 32 hexadecimal digits: servers tokens lists them")}
	}
	return nil
}

// checkTTL says what is wrong with how long a join token is to be good. Zero is an hour.
func checkTTL(ttl time.Duration) error {
	if ttl < 0 || ttl > keyring.MaxJoinTTL {
		return badRequest{fmt.Errorf("a token for %v, want at most %v", ttl, keyring.MaxJoinTTL)}
	}
	return nil
}

// notAdded is the error of adding a server, with its cause if the members of now have it.
func notAdded(err error, in serverRequest, members []raft.Server) error {
	taken := slices.ContainsFunc(members, func(m raft.Server) bool {
		elsewhere := (m.ID == in.ID) != (m.Address == raft.ServerAddress(in.Addr)) // the ID at another address, or the address of another ID
		return elsewhere || m.ID == in.ID && m.Suffrage == raft.Voter && in.Nonvoter
	})
	if err != nil && taken {
		return conflict{err}
	}
	return err
}

// notRemoved is the error of removing or demoting a server, with its cause if the members of now or the keys
// that they hold are it.
func notRemoved(err error, id raft.ServerID, members []raft.Server) error {
	voters := slices.DeleteFunc(slices.Clone(members), func(m raft.Server) bool { return m.Suffrage != raft.Voter })
	if errors.Is(err, keyring.ErrNotDurable) || err != nil && len(voters) == 1 && voters[0].ID == id {
		return conflict{err}
	}
	return err
}

// notTransferred is the error of handing over, with its cause if no other voter is there to take over, or
// that server has no vote.
func notTransferred(err error, to raft.ServerID, members []raft.Server) error {
	voters := slices.DeleteFunc(slices.Clone(members), func(m raft.Server) bool { return m.Suffrage != raft.Voter })
	isVoter := to == "" || slices.ContainsFunc(voters, func(m raft.Server) bool { return m.ID == to })
	if err != nil && !errors.Is(err, keyring.ErrNotMember) && (len(voters) == 1 || !isVoter && len(members) > 0) {
		return conflict{err}
	}
	return err
}

// notWithdrawn is the error of the withdrawal of a token, with its cause if there is none of that ID now.
func notWithdrawn(err error, id string, tokens []keyring.JoinTokenInfo) error {
	if err != nil && !slices.ContainsFunc(tokens, func(t keyring.JoinTokenInfo) bool { return strings.EqualFold(t.ID, id) }) {
		return missing{err}
	}
	return err
}

// servers are the members that this server knows, or none if it is closed.
func (h *Handler) servers(ctx context.Context) []raft.Server {
	st, err := h.server.Keyring().Status(ctx)
	if err != nil {
		return nil
	}
	return st.Servers
}
