package main

import (
	"fmt"
	"net"
)

// ports prints so many TCP ports of 127.0.0.1, different ones, on which nobody listens now.
func ports(count int) error {
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		// Held until the end, so that no port comes twice.
		defer listener.Close()
		fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	}
	return nil
}
