package keyring

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// address is a host:port at which the others reach a server, as it goes into the raft configuration.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

// parseAddress takes the host:port of one server: a name or an IP address that can be dialled, which an
// unspecified one such as 0.0.0.0 can't from elsewhere, and a port from 1 to 65535.
func parseAddress(s string) (address, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || len(s) > meta.MaxServerID {
		return "", fmt.Errorf("address %.300q: want host:port, of at most %d bytes", s, meta.MaxServerID)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port || n == 0 {
		return "", fmt.Errorf("address %q: port %q, want 1 to 65535", s, port)
	}
	if err := checkHost(host); err != nil {
		return "", fmt.Errorf("address %q: %w", s, err)
	}
	return address(s), nil
}

func checkHost(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip = ip.Unmap(); ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fmt.Errorf("%s is not the address of one server, which others could reach", host)
		}
		return nil
	}
	name := strings.TrimSuffix(host, ".")
	last := name[strings.LastIndexByte(name, '.')+1:]
	switch {
	case name == "":
		return errors.New("no host: the others have to reach this server there")
	case strings.Trim(last, "0123456789") == "" || strings.HasPrefix(strings.ToLower(last), "0x"):
		return fmt.Errorf("host %q is neither a name nor an IP address", host) // resolvers read 0 as 0.0.0.0
	case strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.", r)
	}):
		return fmt.Errorf("host %q is neither a name nor an IP address", host)
	}
	return nil
}

// checkServerID refuses what can't be the ID of a server that is to come, or is a slip of the keyboard.
func checkServerID(id raft.ServerID) error {
	s := string(id)
	switch {
	case s == "" || len(s) > meta.MaxServerID || !utf8.ValidString(s):
		return fmt.Errorf("a server ID of %d bytes, want 1 to %d of UTF-8", len(s), meta.MaxServerID)
	case strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("server ID %q begins or ends with a space, or has what can't be printed", s)
	}
	return nil
}
