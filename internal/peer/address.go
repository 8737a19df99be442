package peer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxServerID is the longest ID of a server, and the longest address, in bytes.
const MaxServerID = 255

// CheckAddress says what is wrong with the host:port of one server. The host is a name, or an IP address that can be
// dialled from elsewhere: not an unspecified one such as 0.0.0.0. The port is from 1 to 65535.
func CheckAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || len(addr) > MaxServerID {
		return fmt.Errorf("address %.300q: want host:port, of at most %d bytes", addr, MaxServerID)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port || n == 0 {
		return fmt.Errorf("address %q: port %q, want 1 to 65535", addr, port)
	}
	if err := checkHost(host); err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	return nil
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

// CheckServerID says what is wrong with the ID of a server that is to be added. Members that join again or move are asked
// too, so a stricter rule would lock them out: a reason not to admit a new server is one of plan.JoinRefusal. It also refuses what looks like a
// typing error: spaces at the ends, and characters that can't be printed.
func CheckServerID(id string) error {
	switch {
	case id == "" || len(id) > MaxServerID || !utf8.ValidString(id):
		return fmt.Errorf("a server ID of %d bytes, want 1 to %d of UTF-8", len(id), MaxServerID)
	case strings.TrimSpace(id) != id || strings.ContainsFunc(id, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("server ID %q begins or ends with a space, or has a character that can't be printed", id)
	}
	return nil
}
