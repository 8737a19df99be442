package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// DialError says why a server was not reached. Its text has the cause in plain words, and then the error as it came.
type DialError struct {
	Server string // whose certificate was wanted, or AnyServer
	Addr   string
	Cause  string // the same words for the same cause: it has no port of this side, and no time of day
	Err    error
}

// Error implements error.
func (e *DialError) Error() string {
	if e.Cause == e.Err.Error() {
		return fmt.Sprintf("dial server %q at %s: %s", e.Server, e.Addr, e.Cause)
	}
	return fmt.Sprintf("dial server %q at %s: %s (%v)", e.Server, e.Addr, e.Cause, e.Err)
}

// Unwrap returns the error as it came.
func (e *DialError) Unwrap() error { return e.Err }

// CauseOf returns what is the same in two errors that have the same cause: that of a DialError, or the text.
func CauseOf(err error) string {
	if d := (*DialError)(nil); errors.As(err, &d) {
		return d.Addr + ": " + d.Cause
	}
	return err.Error()
}

// otherServer is the error of a certificate that is in order, and not that of the server which was wanted.
type otherServer struct{ error }

// Unwrap returns the error.
func (o otherServer) Unwrap() error { return o.error }

// errMute is the error of a dial to an address at which something takes connections and says nothing.
var errMute = errors.New("the connection is open, but nothing comes back on it")

// errNotAdmitted is the error of a dial whose handshake was in order for this side.
var errNotAdmitted = errors.New("not admitted")

// causeOf says in plain words why a dial failed: why this side refused the other, why the other side refused this one,
// or what is wrong with the network.
func causeOf(err error) string {
	for _, cause := range []func(error) string{refusedHere, refusedThere, noTLS, noNetwork} {
		if words := cause(err); words != "" {
			return words
		}
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err.Error() // without the port of this side, which is another one each time
	}
	return err.Error()
}

// refusedHere is why this side does not accept the certificate of the other, or nothing.
func refusedHere(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, new(otherServer)):
		return "another server answers there, or one of another cluster"
	case errors.As(err, &unknown):
		return "its certificate is from another CA than those in RootCAs here"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its " + validity(invalid.Cert, time.Now())
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "its certificate is not for server authentication"
	case errors.As(err, &invalid):
		return "its certificate is invalid"
	}
	return ""
}

// validity says how a certificate is out of its time.
func validity(c *x509.Certificate, now time.Time) string {
	name := "certificate"
	if c.IsCA {
		name = "CA's certificate"
	}
	switch {
	case now.After(c.NotAfter):
		return fmt.Sprintf("%s expired at %s UTC, by the clock here", name, c.NotAfter.UTC().Format(time.DateTime))
	case now.Before(c.NotBefore):
		return fmt.Sprintf("%s is not valid before %s UTC, which is in the future by the clock here. Is one of the clocks wrong?", name, c.NotBefore.UTC().Format(time.DateTime))
	}
	return name + " is not valid now, by the clock of the TLS configuration here" // which has a clock of its own
}

// alerts are what the other side may say of this side's certificate or protocol: RFC 8446, 6.
var alerts = map[tls.AlertError]string{
	40:  "it speaks TLS, but shares no cipher or version with this server: is it another service?",
	42:  "it rejects this server's certificate: it belongs to another cluster, or this server is not one of its members. Its log says why",
	43:  "it rejects the kind of this server's certificate",
	44:  "it says that this server's certificate is revoked",
	45:  "it says that this server's certificate has expired, or is not valid yet. Is one of the clocks wrong?",
	46:  "it rejects this server's certificate. Its log says why",
	48:  "it does not know the CA of this server's certificate",
	49:  "it rejects this server. Its log says why",
	70:  "it speaks another version of TLS: is it another service?",
	80:  "it has an internal error, which is in its log",
	120: "it speaks TLS, but not the keyring's protocol: is it another service?",
}

// refusedThere is what the other side has said before it closed the connection, or nothing.
func refusedThere(err error) string {
	op := (*net.OpError)(nil)
	if !errors.As(err, &op) || op.Op != "remote error" {
		return ""
	}
	for alert, words := range alerts {
		if op.Err.Error() == alert.Error() { // crypto/tls has a type of its own for it, with the same text
			return words
		}
	}
	return "it refuses the connection"
}

// noTLS says what was found in place of TLS, or nothing.
func noTLS(err error) string {
	header := tls.RecordHeaderError{}
	switch {
	case errors.As(err, &header) && bytes.HasPrefix(header.RecordHeader[:], []byte("HTTP")):
		return "it speaks plain HTTP, not the keyring's protocol"
	case errors.As(err, &header):
		return "it does not speak TLS: another service listens at that port"
	case errors.Is(err, errNotAdmitted):
		return "it accepts no more connections from this server, or it is being closed"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it closes the connection without an answer: is it another service, or a proxy?"
	}
	return ""
}

// noNetwork says why there is no connection, or nothing.
func noNetwork(err error) string {
	name := (*net.DNSError)(nil)
	switch {
	case errors.As(err, &name) && name.IsNotFound:
		return "DNS does not know the name"
	case errors.As(err, &name):
		return "DNS does not answer"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route to it"
	case errors.Is(err, errMute):
		return errMute.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "no answer: is the machine down, or does a firewall drop the packets?"
	}
	return ""
}
