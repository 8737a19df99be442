package kms

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"example.com/keyring"
)

// classified has an error match keyring.ErrKEKRefused or keyring.ErrKEKThrottled, if the client of the KMS
// says so. The clients have types of their own, none of which is imported: what counts is the HTTP status, or
// a code.
func classified(err error) error {
	switch {
	case has(err, isThrottling):
		return fmt.Errorf("%w: %w", keyring.ErrKEKThrottled, err)
	case has(err, isRefusal):
		return fmt.Errorf("%w: %w", keyring.ErrKEKRefused, err)
	}
	return err
}

// has reports whether an error, or one that it wraps, has a status and a code that are.
func has(err error, are func(status int, code string) bool) bool {
	if err == nil {
		return false
	}
	if are(statusOf(err), codeOf(err)) {
		return true
	}
	if e, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range e.Unwrap() {
			if has(err, are) {
				return true
			}
		}
	}
	if e, ok := err.(interface{ OrigErr() error }); ok && has(e.OrigErr(), are) { // AWS
		return true
	}
	return has(errors.Unwrap(err), are)
}

// statusOf is the HTTP status that an error has in a method or a field, or zero.
func statusOf(err error) int {
	switch e := err.(type) {
	case interface{ StatusCode() int }: // AWS
		return e.StatusCode()
	case interface{ HTTPStatusCode() int }: // AWS v2
		return e.HTTPStatusCode()
	case interface{ GetHTTPStatusCode() int }: // OCI
		return e.GetHTTPStatusCode()
	}
	for _, name := range []string{"StatusCode", "Code"} { // Vault, Azure, Huawei; Google's googleapi
		if f := field(err, name); f.IsValid() && f.CanInt() {
			return int(f.Int())
		}
	}
	return 0
}

// codeOf is the code that an error has as text, or empty. That of gRPC is in its text.
func codeOf(err error) string {
	switch e := err.(type) {
	case interface{ Code() string }: // AWS
		return e.Code()
	case interface{ ErrorCode() string }: // AWS v2, AliCloud
		return e.ErrorCode()
	case interface{ GetCode() string }: // Tencent Cloud
		return e.GetCode()
	}
	if f := field(err, "ErrorCode"); f.IsValid() && f.Kind() == reflect.String { // Azure
		return f.String()
	}
	if _, code, ok := strings.Cut(err.Error(), "rpc error: code = "); ok { // Google
		code, _, _ = strings.Cut(code, " ")
		return code
	}
	return ""
}

// field is a field of an error that is a struct or points to one.
func field(err error, name string) reflect.Value {
	v := reflect.ValueOf(err)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.FieldByName(name)
}

// isThrottling reports whether the KMS is asked too often.
func isThrottling(status int, code string) bool {
	code = strings.ToLower(code)
	return status == http.StatusTooManyRequests || strings.Contains(code, "throttl") || strings.Contains(code, "limitexceeded") ||
		strings.Contains(code, "toomanyrequests") || code == "resourceexhausted"
}

// isRefusal reports whether the KMS answers and does not do this: it does not allow it, or its key is
// disabled or gone.
func isRefusal(status int, code string) bool {
	if status/100 == 4 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests {
		return true
	}
	switch strings.ToLower(code) {
	case "accessdeniedexception", "disabledexception", "notfoundexception", "kmsinvalidstateexception", "invalidkeyusageexception",
		"unrecognizedclientexception", "permissiondenied", "unauthenticated", "notfound", "failedprecondition":
		return true
	}
	return false
}
